// The conversation: its turns, their branches, and the answers that are coming.

import { answer, messages } from "./answer"
import type { Props } from "./api"
import { add, path, show, siblings, type Conversation, type Turn } from "./conversation"
import { byId, copy, duration, figure, h, iconButton, say, toast } from "./dom"
import { Markdown } from "./markdown"
import { layersRun, parseMask } from "./mask"
import { name } from "./mode"
import { speedOf, type Panel } from "./panel"
import { Strip } from "./picture"
import { settings } from "./store"
import { Alignment, hideTip, Marks, places, showTip, TokenList } from "./tokens"

const aligned = 50_000 // characters; in longer answers tokens are shown in their list only

/** What the chat needs from the rest of the page. */
export interface Surroundings {
  props(): Props | undefined
  panel: Panel
  save(c: Conversation): void
  changed(): void // turns came, went or ended: the gauge and the buttons follow
}

/** Chat shows one conversation; answers of others go on behind it. */
export class Chat {
  conversation!: Conversation
  private readonly list = byId("turns")
  private readonly scroller = byId("scroller")
  private readonly empty = byId("empty")
  private readonly views = new Map<string, TurnView>()
  private readonly runs = new Map<string, AbortController>() // by the answer's id

  constructor(readonly around: Surroundings) {}

  /** open shows a conversation. */
  open(c: Conversation): void {
    this.conversation = c
    for (const view of this.views.values()) view.close()
    this.views.clear()
    this.list.replaceChildren()
    this.render()
    this.scroller.scrollTop = this.scroller.scrollHeight
    this.around.panel.show(path(c).findLast((turn) => turn.role === "assistant") ?? null)
  }

  /** running is the answer of the shown conversation that is coming. */
  running(): Turn | undefined {
    return path(this.conversation).find((turn) => this.runs.has(turn.id))
  }

  /** stop ends the running answer of the shown conversation. */
  stop(): void {
    for (const turn of Object.values(this.conversation.turns)) this.runs.get(turn.id)?.abort()
  }

  /** forget ends the answers of a conversation that is removed. */
  forget(c: Conversation): void {
    for (const id of Object.keys(c.turns)) this.runs.get(id)?.abort()
  }

  /** ask puts a question behind parent and has it answered. */
  ask(text: string, parent: string | null = this.conversation.leaf): void {
    this.answer(add(this.conversation, parent, { role: "user", text }))
  }

  /** answer answers a question, once more if it has answers. */
  answer(question: Turn): void {
    this.stop()
    const c = this.conversation
    const turn = add(c, question.id, { role: "assistant", text: "", state: "running", mode: { ...settings.mode }, model: settings.model })
    const controller = new AbortController()
    this.runs.set(turn.id, controller)
    this.render()
    this.scroller.scrollTop = this.scroller.scrollHeight
    this.around.panel.show(turn)
    this.around.save(c)
    say("Answering.")

    let saved = performance.now()
    let drawn = 0
    const draw = () => {
      drawn = 0
      this.draw(turn)
    }
    void answer(turn, messages(path(c, question.id)), controller.signal, () => {
      drawn ||= requestAnimationFrame(draw)
      if (performance.now() - saved > 2000) {
        saved = performance.now()
        this.around.save(c)
      }
    }).then(() => {
      cancelAnimationFrame(drawn)
      this.runs.delete(turn.id)
      this.draw(turn)
      this.around.save(c)
      say(turn.state === "done" ? turn.text : turn.state === "stopped" ? "Stopped." : turn.error!)
    })
  }

  /** branch shows another turn in the place of one. */
  branch(turn: Turn, step: 1 | -1): void {
    const all = siblings(this.conversation, turn)
    const next = all[all.indexOf(turn) + step]
    if (!next) return
    show(this.conversation, next)
    this.render()
    this.around.save(this.conversation)
    this.around.panel.show(path(this.conversation).findLast((t) => t.role === "assistant") ?? null)
    this.views.get(next.id)?.focusBranch(step)
    say(`${next.role === "user" ? "Question" : "Answer"} ${all.indexOf(next) + 1} of ${all.length}.`)
  }

  /** edit opens the last question for editing. */
  editLast(): void {
    const last = path(this.conversation).findLast((turn) => turn.role === "user")
    if (last) this.views.get(last.id)?.edit()
  }

  private draw(turn: Turn): void {
    const view = this.views.get(turn.id)
    if (!view) return
    const atEnd = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < 48
    view.update()
    if (atEnd) this.scroller.scrollTop = this.scroller.scrollHeight
    this.around.panel.update()
    this.around.changed()
  }

  private render(): void {
    const turns = path(this.conversation)
    this.empty.hidden = turns.length > 0
    turns.forEach((turn, i) => {
      let view = this.views.get(turn.id)
      if (!view) this.views.set(turn.id, (view = turn.role === "user" ? new Question(this, turn) : new Answer(this, turn)))
      view.update()
      if (this.list.children[i] !== view.element) {
        while (this.list.children.length > i) this.list.lastElementChild!.remove()
        this.list.append(view.element)
      }
    })
    while (this.list.children.length > turns.length) this.list.lastElementChild!.remove()
    this.around.changed()
  }
}

abstract class TurnView {
  abstract readonly element: HTMLElement
  private readonly place = h("span", { class: "place" })
  private readonly earlier = iconButton("left", "Earlier version", () => this.chat.branch(this.turn, -1))
  private readonly later = iconButton("right", "Later version", () => this.chat.branch(this.turn, 1))
  protected readonly branches = h("span", { class: "branches" }, this.earlier, this.place, this.later)

  constructor(protected readonly chat: Chat, protected readonly turn: Turn) {}

  update(): void {
    const all = siblings(this.chat.conversation, this.turn)
    const at = all.indexOf(this.turn)
    this.branches.hidden = all.length < 2
    this.place.textContent = `${at + 1} / ${all.length}`
    this.earlier.disabled = at === 0
    this.later.disabled = at === all.length - 1
  }

  edit(): void {}

  /** close lets go of what is outside of the view's own elements. */
  close(): void {}

  focusBranch(step: 1 | -1): void {
    const [first, second] = step > 0 ? [this.later, this.earlier] : [this.earlier, this.later]
    ;(first.disabled ? second : first).focus()
  }

  protected copyButton(): HTMLButtonElement {
    return iconButton("copy", "Copy", async () => {
      await copy(this.turn.text)
      toast("Copied.")
    })
  }
}

class Question extends TurnView {
  readonly element: HTMLElement
  private readonly text = h("div", { class: "bubble" })

  constructor(chat: Chat, turn: Turn) {
    super(chat, turn)
    this.text.textContent = turn.text
    this.element = h("li", { class: "turn question", "aria-label": "Your question" }, this.text,
      h("div", { class: "actions" }, this.branches, iconButton("edit", "Edit", () => this.edit()), this.copyButton()))
  }

  override edit(): void {
    if (this.element.querySelector("form")) return
    const area = h("textarea", { "aria-label": "Edit your question", rows: Math.min(10, this.turn.text.split("\n").length + 1) })
    area.value = this.turn.text
    const close = () => {
      form.replaceWith(this.text)
      ;(this.element.querySelector("[aria-label='Edit']") as HTMLElement).focus()
    }
    const form = h("form", {
      class: "editor",
      onsubmit: (event: Event) => {
        event.preventDefault()
        const text = area.value.trim()
        close()
        if (!text) return
        this.chat.ask(text, this.turn.parent)
        byId("message").focus()
      },
      onkeydown: (event: KeyboardEvent) => {
        if (event.key === "Escape") {
          event.stopPropagation()
          close()
        } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault()
          form.requestSubmit()
        }
      },
    }, area, h("div", { class: "editor-buttons" },
      h("button", { type: "button", class: "quiet-button", onclick: close }, "Cancel"),
      h("button", { type: "submit", class: "main-button" }, "Send as a new branch")))
    this.text.replaceWith(form)
    area.focus()
    area.setSelectionRange(area.value.length, area.value.length)
  }
}

class Answer extends TurnView {
  readonly element: HTMLElement
  private readonly markdown = new Markdown()
  private readonly tokens = new TokenList((piece) => this.look(piece))
  private readonly thought = h("div", { class: "thought" })
  private readonly thinking = h("details", { class: "thinking" }, h("summary", {}, "Thinking"), this.thought)
  private readonly problem = h("p", { class: "problem", role: "alert" })
  private readonly strip = new Strip()
  private readonly facts = h("span", { class: "turn-facts" })
  private readonly layers: HTMLButtonElement
  private readonly tokensButton: HTMLButtonElement
  private readonly escalated = new Marks("escalated")
  private readonly drafted = new Marks("draft")
  private readonly looked = new Marks("looked")
  private painted = 0 // ms
  private known: { of: string; places: [number, number][]; alignment: Alignment } | undefined

  constructor(chat: Chat, turn: Turn) {
    super(chat, turn)
    this.layers = h("button", { type: "button", class: "strip-button", onclick: () => {
      chat.around.panel.show(turn)
      document.body.classList.add("panel-open")
      if (matchMedia("(max-width: 1100px)").matches) byId("close-panel").focus()
    } }, this.strip.element, this.facts)
    this.tokensButton = iconButton("tokens", "Tokens", () => this.toggleTokens(), { "aria-pressed": "false" })
    this.tokens.element.hidden = true
    this.element = h("li", { class: "turn answer", "aria-label": "Answer" },
      this.thinking, this.markdown.element, this.tokens.element, this.problem,
      h("div", { class: "actions" }, this.layers, this.branches,
        iconButton("again", "Answer again", () => chat.answer(chat.conversation.turns[turn.parent!]!)),
        this.tokensButton, this.copyButton()))
    this.markdown.element.addEventListener("pointermove", (event) => this.point(event))
    this.markdown.element.addEventListener("pointerleave", () => this.look(null))
  }

  override update(): void {
    super.update()
    const { turn } = this
    const running = turn.state === "running"
    this.element.classList.toggle("running", running)
    this.element.classList.toggle("waiting", running && !turn.text && !turn.reasoning)
    this.element.setAttribute("aria-busy", String(running))
    this.markdown.set(turn.text)
    this.thinking.hidden = !turn.reasoning
    this.thought.textContent = turn.reasoning ?? ""
    if (!this.tokens.element.hidden) this.tokens.set(turn.pieces ?? [])
    this.tokensButton.hidden = !turn.pieces?.length
    this.paint()

    this.problem.hidden = !(turn.error || turn.full || turn.state === "stopped")
    this.problem.classList.toggle("mild", !turn.error)
    this.problem.textContent = turn.error ?? (turn.full ? "The answer ended here: it reached its limit of tokens." : "Stopped.")

    const layers = turn.summary?.layers ?? this.chat.around.props()?.layers ?? 0
    this.layers.hidden = !layers || turn.skip === undefined
    if (this.layers.hidden) return
    this.strip.show(layers, turn.skip ?? "")
    this.strip.run(running)
    const ran = layersRun(parseMask(turn.skip ?? "", layers))
    const speed = speedOf(turn)
    const parts = [turn.mode && name(turn.mode), `${figure(ran)} of ${layers} layers`]
    if (speed) parts.push(`${figure(speed)} tokens/s`)
    if (turn.summary?.escalated) parts.push(`${turn.summary.escalated} escalated`)
    if (turn.summary?.accepted) parts.push(`${turn.summary.accepted} drafted`)
    this.facts.replaceChildren(...parts.filter(Boolean).flatMap((part, i) => [i ? " · " : "", h("span", { class: "fact" }, part!)]))
    this.layers.title = turn.milliseconds ? `Show this answer’s layers; it took ${duration(turn.milliseconds)}` : "Show this answer’s layers"
  }

  override close(): void {
    for (const marks of [this.escalated, this.drafted, this.looked]) marks.set([])
  }

  /** paint marks the tokens that did not come out of the mask. */
  private paint(): void {
    const now = performance.now()
    if (this.turn.state === "running" && now - this.painted < 250) return
    this.painted = now
    const of = (source: string) => (this.turn.pieces ?? []).flatMap((piece, i) => (piece.source === source ? [this.range(i)] : []))
    this.escalated.set(of("escalated"))
    this.drafted.set(of("draft"))
  }

  /** where says where the tokens are in the answer's text, and where that is on the screen. */
  private where(): { places: [number, number][]; alignment: Alignment } | undefined {
    const { text, pieces = [] } = this.turn
    if (text.length > aligned) return undefined
    const of = `${pieces.length} ${text.length}`
    if (this.known?.of !== of) this.known = { of, places: places(pieces, text), alignment: new Alignment(this.markdown.element, text) }
    return this.known
  }

  /** range is where a token is shown. */
  private range(i: number): Range | undefined {
    const where = this.where()
    return where?.alignment.range(...where.places[i]!)
  }

  private point(event: PointerEvent): void {
    if (event.buttons || event.pointerType === "touch") return
    const at = this.where()?.alignment.at(event.clientX, event.clientY)
    const i = at === undefined ? -1 : this.where()!.places.findIndex(([start, end]) => start <= at && at < end)
    const range = i < 0 ? undefined : this.range(i)
    const boxes = [...(range?.getClientRects() ?? [])]
    const box = boxes.find((b) => event.clientX > b.left - 12 && event.clientX < b.right + 12 && event.clientY > b.top - 6 && event.clientY < b.bottom + 6)
    if (!box) {
      this.look(null)
      return
    }
    this.looked.set([range])
    showTip(this.turn.pieces![i]!, box)
    this.look(this.turn.pieces![i]!)
  }

  private look(piece: Parameters<Panel["look"]>[0]): void {
    if (!piece) {
      this.looked.set([])
      hideTip()
      this.chat.around.panel.look(null)
      return
    }
    this.chat.around.panel.show(this.turn)
    this.chat.around.panel.look(piece)
  }

  private toggleTokens(): void {
    const list = this.tokens.element
    list.hidden = !list.hidden
    this.markdown.element.hidden = !list.hidden
    this.tokensButton.setAttribute("aria-pressed", String(!list.hidden))
    this.tokens.set(this.turn.pieces ?? [])
    if (!list.hidden) this.tokens.focus()
  }
}
