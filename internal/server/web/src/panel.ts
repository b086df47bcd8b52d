// The panel beside the chat: the picture of the model for one answer, and its speed.

import type { Piece } from "./api"
import type { Turn } from "./conversation"
import { duration, figure, h } from "./dom"
import { layersRun, parseMask } from "./mask"
import { legend, Tower } from "./picture"
import { wholeSpeed } from "./store"
import { maskOf } from "./tokens"

const enough = 3 // answers of the whole model, for a median that one slow answer does not move

/** speedOf is an answer's tokens/s: the server's figure, or what the page saw of an incomplete one. */
export function speedOf(turn: Turn): number | undefined {
  if (turn.summary) return turn.summary.tps
  if (!turn.milliseconds || (turn.pieces?.length ?? 0) < 2) return undefined
  return turn.pieces!.length / (turn.milliseconds / 1000)
}

/** bars draws speeds beside each other, the first one as this answer's. */
export function bars(rows: { name: string; tps: number; kind: string }[]): HTMLElement {
  const most = Math.max(...rows.map((row) => row.tps))
  return h("ul", { class: "bars" }, ...rows.map(({ name, tps, kind }) => {
    const bar = h("span", { class: `bar ${kind}`, "aria-hidden": "true" })
    bar.style.setProperty("--share", String(tps / most))
    return h("li", {}, h("span", { class: "bar-name" }, name), h("span", { class: "bar-figure" }, `${figure(tps)} tokens/s`), bar)
  }))
}

/** Panel shows the answer that was looked at last, or the one that is coming. */
export class Panel {
  readonly element = h("div", { class: "panel" })
  private readonly tower = new Tower()
  private readonly lead = h("p", { class: "lead" })
  private readonly note = h("p", { class: "reason" })
  private readonly facts = h("div", { class: "facts" })
  private turn: Turn | null = null
  private seen = 0 // pieces of turn that were shown

  /** layers is what the server says of the model; compare goes to the side-by-side view with turn's question. */
  constructor(private readonly layers: () => number, private readonly compare: (turn: Turn) => void) {
    this.element.append(this.lead, this.tower.element, legend({ escalated: "escalated token", draft: "drafted token" }), this.note, this.facts)
  }

  /** show shows an answer; null = none yet. */
  show(turn: Turn | null): void {
    if (turn !== this.turn) this.seen = turn?.pieces?.length ?? 0
    this.turn = turn
    this.update()
  }

  /** look shows what computed one token, until it is called with null. */
  look(piece: Piece | null): void {
    const layers = this.turn?.summary?.layers ?? this.layers()
    if (layers) this.tower.show(layers, piece ? maskOf(piece) : (this.turn?.skip ?? ""))
    this.tower.element.classList.toggle("looking", piece !== null)
  }

  /** update shows what has come since. */
  update(): void {
    const turn = this.turn
    const layers = turn?.summary?.layers ?? this.layers()
    if (!layers) {
      this.lead.replaceChildren("The picture of the model appears here.")
      return
    }
    const skip = turn?.skip ?? ""
    const running = turn?.state === "running"
    this.tower.show(layers, skip)
    this.tower.run(running)
    const pieces = turn?.pieces ?? []
    if (running && pieces.slice(this.seen).some((piece) => piece.source === "escalated")) this.tower.flash()
    this.seen = pieces.length

    const ran = layersRun(parseMask(skip, layers))
    if (running && turn.skip === undefined) this.lead.replaceChildren(h("span", { class: "quiet" }, "Choosing among"), ` ${layers} layers`)
    else this.lead.replaceChildren(h("strong", {}, figure(ran)), ` of ${layers} layers `, h("span", { class: "quiet" }, turn ? (running ? "run" : "ran") : ""))
    this.note.textContent = turn?.summary?.mask_off ? "The mask did not pay here, so the answer went on with the whole model."
      : (turn?.summary?.reason ?? (turn ? "" : "Ask something, and see which layers the answer needs."))
    this.facts.replaceChildren(...(turn ? this.figures(turn) : []))
  }

  private figures(turn: Turn): (Node | string)[] {
    const tps = speedOf(turn)
    const parts: (Node | string)[] = []
    const whole = wholeSpeed(turn.model ?? "")
    const isWhole = turn.mode?.kind === "whole"
    if (tps) {
      const rows = [{ name: "This answer", tps, kind: "this" }]
      if (whole && !isWhole) rows.push({ name: `Whole model, ${whole.answers > 1 ? `median of ${whole.answers}` : "1 answer"}`, tps: whole.tps, kind: "whole" })
      parts.push(h("h3", {}, "Speed"), bars(rows))
      if (!isWhole && turn.state === "done") {
        if (whole && whole.answers >= enough) parts.push(h("p", { class: "ratio" }, h("strong", {}, `${figure(tps / whole.tps)} ×`), " the whole model’s speed"))
        else parts.push(h("p", { class: "quiet" }, whole ? "The whole model was timed too seldom to compare." : "The whole model has not been timed yet."))
        parts.push(h("button", { type: "button", class: "quiet-button", onclick: () => this.compare(turn) }, "Compare side by side"))
      }
    }
    const s = turn.summary
    if (!s) return parts
    const cached = turn.usage?.prompt_tokens_details?.cached_tokens ?? 0
    const rows: [string, string][] = []
    if (s.task) rows.push(["Prompts like", s.task])
    if (s.quality) rows.push(["Predicted quality", `${figure(100 * s.quality)} %`])
    if (s.weights_share) rows.push(["Weights read per token", `${figure(100 * s.weights_share)} %`])
    if (s.first_token_ms) rows.push(["First token after", duration(s.first_token_ms)])
    if (s.prompt_tps > 0) rows.push(["Prompt", `${figure(s.prompt_tps)} tokens/s`])
    if (turn.usage) rows.push(["Prompt from cache", `${cached} of ${turn.usage.prompt_tokens} tokens`])
    if (s.escalated) rows.push(["Escalated", `${s.escalated} of ${turn.usage?.completion_tokens ?? turn.pieces?.length} tokens`])
    if (s.drafted) rows.push(["Drafts accepted", `${s.accepted ?? 0} of ${s.drafted} tokens`])
    parts.push(h("h3", {}, "Figures"), h("dl", {}, ...rows.flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)])))
    return parts
  }
}
