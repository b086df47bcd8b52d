// Tokens: what computed each, and where each stands in the rendered answer.

import type { Piece } from "./api"
import { byId, figure, h } from "./dom"

/** maskOf is the mask that computed a token; what the whole model decided has none. */
export function maskOf(piece: Piece): string {
  return piece.source === "mask" || piece.source === "prompt" ? (piece.skip ?? "") : ""
}

/** by says what computed a token. */
export function by(piece: Piece): string {
  switch (piece.source) {
    case "prompt":
      return "out of the prompt’s own pass"
    case "mask":
      return piece.skip ? `computed without ${piece.skip}` : "computed by every layer"
    case "whole":
      return "computed by the whole model"
    case "escalated":
      return "escalated: in doubt without the skipped layers, so the whole model decided"
    case "draft":
      return "drafted with layers skipped, and accepted by the whole model"
  }
}

/** probability is a token's, in words; "" = not known. */
export function probability(piece: Piece): string {
  if (piece.logprob === null) return ""
  const percent = 100 * Math.exp(piece.logprob)
  return `${percent >= 99.95 ? "100" : percent >= 10 ? percent.toFixed(1) : figure(percent)} %`
}

const visible = (text: string) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "\u00b7") || "∅"

/** showTip shows what is known of a token beside a place on the screen. */
export function showTip(piece: Piece, at: DOMRect): void {
  const tip = byId("tip")
  const p = probability(piece)
  tip.replaceChildren(
    h("span", { class: `tip-text ${piece.source}` }, visible(piece.text)),
    p && h("span", { class: "tip-probability" }, p),
    h("span", { class: "tip-source" }, by(piece)))
  tip.hidden = false
  const box = tip.getBoundingClientRect()
  const left = Math.max(8, Math.min(at.left + at.width / 2 - box.width / 2, innerWidth - box.width - 8))
  const above = at.top - box.height - 8
  tip.style.left = `${left}px`
  tip.style.top = `${above < 8 ? at.bottom + 8 : above}px`
}

export function hideTip(): void {
  byId("tip").hidden = true
}

/**
 * TokenList shows an answer as its tokens. One of them is in the tab order; arrow keys, Home
 * and End move. The look of a token says what computed it and how sure that was.
 */
export class TokenList {
  readonly element = h("div", { class: "token-view" },
    h("p", { class: "quiet" }, "The more orange a token, the less probable it was. The line below it says what computed it."))
  private readonly list = h("div", { class: "tokens", role: "group", "aria-label": "Tokens of this answer; arrow keys move between them" })
  private readonly buttons: HTMLElement[] = []
  private pieces: Piece[] = []

  constructor(private readonly looked: (piece: Piece | null) => void) {
    this.element.prepend(this.list)
    const at = (event: Event) => {
      const button = (event.target as Element).closest("button")
      return button ? this.buttons.indexOf(button) : -1
    }
    const look = (event: Event) => {
      const i = at(event)
      if (i < 0) return
      showTip(this.pieces[i]!, this.buttons[i]!.getBoundingClientRect())
      this.looked(this.pieces[i]!)
    }
    const leave = () => {
      hideTip()
      this.looked(null)
    }
    this.list.addEventListener("focusin", (event) => {
      this.list.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1")
      ;(event.target as Element).setAttribute("tabindex", "0")
      look(event)
    })
    this.list.addEventListener("focusout", leave)
    this.list.addEventListener("pointerover", look)
    this.list.addEventListener("pointerleave", leave)
    this.list.addEventListener("keydown", (event) => {
      const step: Record<string, number> = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 }
      if (!(event.key in step)) return
      event.preventDefault()
      const next = Math.max(0, Math.min(at(event) + step[event.key]!, this.pieces.length - 1))
      this.buttons[next]!.focus()
    })
  }

  focus(): void {
    this.list.querySelector<HTMLElement>("[tabindex='0']")?.focus()
  }

  /** set shows pieces; what was shown before stays as long as it is the same. */
  set(pieces: Piece[]): void {
    for (let i = this.buttons.length; i < pieces.length; i++) {
      const piece = pieces[i]!
      const doubt = piece.logprob === null ? 0 : Math.min(4, Math.floor((1 - Math.exp(piece.logprob)) * 5))
      const p = probability(piece)
      const button = h("button", {
        type: "button", class: `token ${piece.source} doubt-${doubt}`, tabindex: i === 0 ? 0 : -1,
        "aria-label": `${piece.text.trim() || visible(piece.text)}${p && `, ${p}`}, ${by(piece)}`,
      }, piece.text.replace(/\n/g, "↵"))
      this.buttons.push(button)
      this.list.append(button, ...Array.from(piece.text.matchAll(/\n/g), () => h("br")))
    }
    this.pieces = pieces
  }
}

/**
 * places says where each token stands in the answer's text, as [start, end). Tokens that are
 * not in it have an empty place: those of the reasoning, control tokens, text that is held
 * back. A character made of several tokens belongs to the first.
 */
export function places(pieces: Piece[], text: string): [number, number][] {
  const near = 16 // characters that are looked through for a token that does not come next
  let at = 0
  return pieces.map((piece) => {
    const broken = piece.text.includes("\ufffd")
    const want = broken ? piece.text.replace(/\ufffd.*/s, "") : text.startsWith(piece.text, at) ? piece.text : piece.text.trimStart()
    if (piece.thought || (!want && !broken)) return [at, at]
    const from = want ? text.slice(0, at + near + want.length).indexOf(want, at) : at
    if (from < 0) return [at, at]
    at = from + want.length
    if (!broken) return [from, at]
    const lead = text.codePointAt(at)
    if (lead !== undefined && lead > 127) at += lead > 0xffff ? 2 : 1
    return [from, at]
  })
}

/**
 * Alignment finds a Markdown source's characters in the text that was rendered from it. Both
 * are walked together. A character of the source that is not the next one of the rendering is
 * markup, unless what follows it comes a little later there: then the rendering has added
 * something.
 */
export class Alignment {
  private readonly shown: number[] = [] // of each character of the source, where it is in the rendered text
  private readonly sources: number[] = [] // the other way round
  private readonly nodes: { node: Text; start: number }[] = [] // where each text node begins in the rendered text

  constructor(root: Element, private readonly source: string) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT, (node) =>
      node.parentElement!.closest(".code-head") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT)
    let text = ""
    for (let node = walker.nextNode() as Text | null; node; node = walker.nextNode() as Text | null) {
      this.nodes.push({ node, start: text.length })
      text += node.data
    }
    const isSpace = (c: string | undefined) => c !== undefined && c.trim() === ""
    const fences = [...source.matchAll(/^[ \t]*(?:```|~~~).*$/gm)].map((m) => [m.index, m.index + m[0].length] as const)
    let fence = 0 // the language behind it is no text
    let p = 0
    for (let i = 0; i < source.length && p < text.length; i++) {
      while (fences[fence] && fences[fence]![1] <= i) fence++
      if (fences[fence] && fences[fence]![0] <= i) continue
      const c = source[i]!
      if (isSpace(c)) {
        if (isSpace(text[p])) this.match(i, p++)
        continue
      }
      while (isSpace(text[p])) p++
      if (text[p] !== c) {
        const next = source.slice(i, i + 4)
        const added = [1, 2, 3].find((n) => text.startsWith(next, p + n))
        if (!added) continue
        p += added
      }
      this.match(i, p++)
    }
  }

  private match(inSource: number, inText: number): void {
    this.shown[inSource] = inText
    this.sources[inText] = inSource
  }

  /** range is where the source's characters from start to before end are shown, without space around them. */
  range(start: number, end: number): Range | undefined {
    const seen = (i: number) => this.shown[i] !== undefined && this.source[i]!.trim() !== ""
    while (start < end && !seen(start)) start++
    while (end > start && !seen(end - 1)) end--
    if (start === end) return undefined
    const range = new Range()
    range.setStart(...this.place(this.shown[start]!))
    const [node, offset] = this.place(this.shown[end - 1]!)
    range.setEnd(node, offset + 1)
    return range
  }

  private place(inText: number): [Text, number] {
    const { node, start } = this.nodes.findLast(({ start }) => start <= inText)!
    return [node, inText - start]
  }

  /** at is the source's character that is shown at a place on the screen. */
  at(x: number, y: number): number | undefined {
    let node: Node | undefined
    let offset = 0
    if (document.caretPositionFromPoint) {
      const caret = document.caretPositionFromPoint(x, y)
      node = caret?.offsetNode
      offset = caret?.offset ?? 0
    } else {
      const caret = document.caretRangeFromPoint(x, y)
      node = caret?.startContainer
      offset = caret?.startOffset ?? 0
    }
    const start = this.nodes.find((one) => one.node === node)?.start
    return start === undefined ? undefined : (this.sources[start + offset] ?? this.sources[start + offset - 1])
  }
}

/** Marks paints parts of rendered answers without touching their elements, where the browser can. */
export class Marks {
  private ranges: Range[] = []
  private readonly highlight: Highlight | undefined

  constructor(name: "escalated" | "draft" | "looked" | "differs") {
    if (!("highlights" in CSS)) return
    this.highlight = CSS.highlights.get(name) ?? new Highlight()
    CSS.highlights.set(name, this.highlight)
  }

  /** set paints these ranges in place of the ones before. */
  set(ranges: (Range | undefined)[]): void {
    for (const range of this.ranges) this.highlight?.delete(range)
    this.ranges = ranges.filter((range) => range !== undefined)
    for (const range of this.ranges) this.highlight?.add(range)
  }
}
