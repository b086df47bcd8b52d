// Side by side: the whole model and a shortened one answer the same question, one after the
// other, so that neither takes time from the other. The replay shows both at once, by the
// times at which their words came. Both pick the likeliest token each time, so what differs
// comes from the skipped layers; short answers are timed several times, in turns.

import { diffWordsWithSpace } from "diff"
import { answer, messages } from "./answer"
import type { Props } from "./api"
import { ModeSwitch } from "./composer"
import { newId, type Turn } from "./conversation"
import { byId, duration, figure, h, icon, say } from "./dom"
import { Markdown } from "./markdown"
import { layersRun, parseMask } from "./mask"
import { name, type Mode } from "./mode"
import { bars, speedOf } from "./panel"
import { legend, Strip } from "./picture"
import { settings } from "./store"
import { Alignment, Marks } from "./tokens"

const still = matchMedia("(prefers-reduced-motion: reduce)")

/** A replay of what was too quick to see, or too slow to wait for, takes this long. */
const shortest = 4000 // ms
const longest = 12000

/** Both are asked again while that takes no longer than this altogether, to have medians. */
const patience = 4000 // ms
const mostRounds = 5

/** Run is one answer, with the times at which it grew. */
interface Run {
  turn: Turn
  speed: number // tokens/s
  arrivals: { at: number; length: number }[] // ms, characters there
}

class Way {
  readonly element: HTMLElement
  readonly title = h("h2", {})
  turn!: Turn
  runs: Run[] = [] // of each time that this question was asked
  private arrivals: Run["arrivals"] = []
  private readonly markdown = new Markdown()
  private readonly strip = new Strip()
  private readonly layers = h("p", { class: "way-layers" })
  private readonly clock = h("p", { class: "clock" })
  private readonly time = h("span", { class: "bar time", "aria-hidden": "true" })
  private readonly problem = h("p", { class: "problem", role: "alert" })
  private readonly marks = new Marks("differs")

  constructor(readonly kind: "whole" | "this") {
    this.element = h("section", { class: `way ${kind}` }, this.title, this.strip.element, this.layers, this.clock, this.time, this.markdown.element, this.problem)
  }

  start(mode: Mode): void {
    this.turn = { id: newId(), parent: null, role: "assistant", text: "", created: Date.now(), state: "running", mode: { ...mode }, model: settings.model }
    this.title.textContent = mode.kind === "whole" ? "Whole model" : name(mode)
    this.arrivals = []
    this.marks.set([])
    this.element.classList.add("waiting")
    this.element.style.minHeight = ""
    this.clock.textContent = "waits for its turn"
    this.time.style.setProperty("--share", "0")
    this.markdown.set("")
    this.layers.textContent = ""
    this.problem.hidden = true
  }

  async run(question: string, signal: AbortSignal, layers: number): Promise<void> {
    this.element.classList.remove("waiting")
    let drawn = 0
    const said = messages([{ id: "", parent: null, role: "user", text: question, created: 0 }])
    await answer(this.turn, said, signal, () => {
      this.arrivals.push({ at: this.turn.milliseconds!, length: this.turn.text.length })
      drawn ||= requestAnimationFrame(() => {
        drawn = 0
        this.show(layers)
      })
    }, "0")
    cancelAnimationFrame(drawn)
    const speed = speedOf(this.turn)
    if (speed && this.turn.state === "done") this.runs.push({ turn: this.turn, speed, arrivals: this.arrivals })
    this.show(layers)
  }

  /** typical shows the run of median speed, and gives that. */
  typical(layers: number): number {
    const run = this.runs.toSorted((a, b) => a.speed - b.speed)[this.runs.length >> 1]
    if (!run) return 0
    this.turn = run.turn
    this.arrivals = run.arrivals
    this.show(layers)
    return run.speed
  }

  show(layers: number): void {
    const { turn } = this
    this.markdown.set(turn.text)
    this.strip.show(turn.summary?.layers ?? layers, turn.skip ?? "")
    this.strip.run(turn.state === "running")
    const share = turn.summary?.weights_share
    this.layers.replaceChildren(h("strong", {}, turn.state === "running" && turn.skip === undefined ? "…" : figure(layersRun(parseMask(turn.skip ?? "", layers)))), ` of ${layers} layers`,
      share ? `, ${figure(100 * share)} % of the weights read` : "")
    this.clock.textContent = duration(turn.milliseconds ?? 0)
    this.problem.hidden = turn.state === "done" || turn.state === "running"
    this.problem.textContent = turn.error ?? "Stopped."
  }

  /** mark paints where the answer differs; parts are from its first character to before its last. */
  mark(parts: [number, number][]): void {
    const alignment = new Alignment(this.markdown.element, this.turn.text)
    this.marks.set(parts.map(([start, end]) => alignment.range(start, end)))
  }

  took(): number {
    return this.arrivals.at(-1)?.at ?? 0
  }

  /** replay shows what was there at a time after the question; the bar is full at most. */
  replay(at: number, most: number): void {
    const arrived = this.arrivals.findLast((arrival) => arrival.at <= at)
    const running = at < this.took()
    this.markdown.set(this.turn.text.slice(0, arrived?.length ?? 0))
    this.strip.run(running)
    this.element.classList.toggle("replaying", running)
    this.clock.textContent = duration(Math.min(at, this.took())) + (running ? "" : " ✓")
    this.time.style.setProperty("--share", String(Math.min(at, this.took()) / most))
  }
}

/** Compare is the side-by-side view. */
export class Compare {
  private readonly area = byId<HTMLTextAreaElement>("compare-message")
  private readonly button = byId<HTMLButtonElement>("compare-send")
  private readonly result = byId("compare-result")
  private readonly mode: Mode = { ...settings.mode, kind: settings.mode.kind === "whole" ? "routed" : settings.mode.kind }
  private readonly modes = new ModeSwitch("compare-mode", this.mode, ["whole"])
  private readonly whole = new Way("whole")
  private readonly other = new Way("this")
  private readonly verdict = h("div", { class: "verdict" })
  private readonly figures = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Figures" })
  private readonly replayButton = h("button", { type: "button", class: "quiet-button", onclick: () => this.replay() }, icon("play"), h("span", {}, "Replay both at once"))
  private readonly replayNote = h("span", { class: "quiet" })
  private controller: AbortController | undefined
  private frame = 0
  private asked = "" // the question and the mode that runs are of
  private rounds = 0

  constructor(private readonly props: () => Props | undefined) {
    byId("compare-mode").append(this.modes.element)
    this.result.append(this.verdict,
      h("div", { class: "replay" }, this.replayButton, this.replayNote),
      h("div", { class: "ways" }, this.whole.element, this.other.element), legend({ differs: "words that differ" }), this.figures)
    this.result.hidden = true
    byId("compare-form").addEventListener("submit", (event) => {
      event.preventDefault()
      if (this.controller) this.controller.abort()
      else if (this.area.value.trim()) void this.run(this.area.value.trim())
    })
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return
      event.preventDefault()
      if (!this.controller) byId<HTMLFormElement>("compare-form").requestSubmit()
    })
  }

  /** set says which model is compared. */
  set(props: Props): void {
    this.modes.set(props)
  }

  focus(): void {
    this.area.focus()
  }

  /** fill puts a question into the field; it is not asked. */
  fill(text: string): void {
    this.area.value = text
  }

  /** stop ends what is running; it tells whether anything was. */
  stop(): boolean {
    this.controller?.abort()
    return this.controller !== undefined
  }

  private async run(question: string): Promise<void> {
    const asked = `${settings.model}\n${question}\n${JSON.stringify(this.mode)}`
    if (asked !== this.asked) {
      this.whole.runs = []
      this.other.runs = []
    }
    this.asked = asked
    cancelAnimationFrame(this.frame)
    const layers = this.props()?.layers ?? 0
    this.controller = new AbortController()
    this.result.hidden = false
    this.result.classList.add("running")
    this.button.replaceChildren(icon("stop"), h("span", {}, "Stop"))
    this.verdict.replaceChildren(h("p", { class: "quiet" }, "One after the other, so that neither takes time from the other."))
    this.figures.replaceChildren()
    say("Both are being asked, one after the other.")
    const began = performance.now()
    const { signal } = this.controller
    for (let round = 1; ; round++) {
      this.whole.start({ ...this.mode, kind: "whole" })
      this.other.start(this.mode)
      const order = this.rounds++ % 2 === 0 ? [this.whole, this.other] : [this.other, this.whole]
      for (const way of order) {
        if (!signal.aborted) await way.run(question, signal, layers)
        else way.turn.state = "stopped"
      }
      const spent = performance.now() - began
      if (order.some((way) => way.turn.state !== "done") || round === mostRounds || spent + spent / round > patience) break
    }
    this.controller = undefined
    this.result.classList.remove("running")
    this.button.replaceChildren(icon("play"), h("span", {}, "Ask both"))
    this.judge(layers)
  }

  private judge(layers: number): void {
    const [a, b] = [this.whole, this.other]
    if (a.turn.state !== "done" || b.turn.state !== "done") {
      this.verdict.replaceChildren(h("p", {}, "There is nothing to compare: not both of them answered."))
      say("Not both of them answered.")
      return
    }
    const [was, is] = [a.typical(layers), b.typical(layers)]
    const share = this.mark()
    const ratio = is / was
    const answers = a.turn.text === b.turn.text ? "Word for word the same answer"
      : `${Math.round(100 * share)} % of the words are the same`
    const same = !b.turn.skip && !b.turn.summary?.drafted // what differs in speed is chance then
    const speed = same ? "Nothing was skipped" : `${ratio.toFixed(2)} × ${ratio >= 1 ? "as fast" : "the speed"}`
    const why = b.turn.summary?.mask_off ? "The mask did not pay here, so the answer went on with the whole model. "
      : same ? `${b.turn.summary?.reason ?? ""} Both ran every layer, so the speeds differ by chance. ` : ""
    const times = a.runs.length > 1 ? `medians of ${a.runs.length} answers each, made in turns` : "one answer each; ask again for medians"
    this.verdict.replaceChildren(
      h("p", { class: "big" }, h("strong", {}, speed), h("span", {}, answers)),
      bars([{ name: "Whole model", tps: was, kind: "whole" }, { name: name(this.mode), tps: is, kind: "this" }]),
      h("p", { class: "quiet" }, `${why}Tokens/s of the answer: ${times}. Both pick the likeliest token each time.`))
    say(`${name(this.mode)}: ${speed}. ${answers}.`)
    this.figures.replaceChildren(this.table())
    this.replayNote.textContent = ""
    if (still.matches) for (const way of [a, b]) way.replay(Infinity, Math.max(a.took(), b.took(), 1))
    else this.replay()
  }

  private table(): HTMLElement {
    const rows: [string, (turn: Turn) => string][] = [
      ["Layers run", (t) => (t.summary ? `${figure(layersRun(parseMask(t.skip ?? "", t.summary.layers)))} of ${t.summary.layers}` : "–")],
      ["Weights read per token", (t) => (t.summary?.weights_share ? `${figure(100 * t.summary.weights_share)} %` : "–")],
      ["Tokens/s", (t) => figure(speedOf(t) ?? 0)],
      ["First token after", (t) => (t.summary ? duration(t.summary.first_token_ms) : "–")],
      ["Whole answer", (t) => duration(t.milliseconds ?? 0)],
      ["Tokens", (t) => String(t.usage?.completion_tokens ?? t.pieces?.length ?? 0)],
      ["Escalated tokens", (t) => String(t.summary?.escalated ?? 0)],
      ["Accepted drafts", (t) => (t.summary?.drafted ? `${t.summary.accepted ?? 0} of ${t.summary.drafted}` : "0")],
      ["Prompt from cache", (t) => `${t.usage?.prompt_tokens_details?.cached_tokens ?? 0} of ${t.usage?.prompt_tokens ?? 0}`],
    ]
    const head = (text: string) => h("th", { scope: "col" }, text)
    return h("table", { class: "figures" },
      h("thead", {}, h("tr", {}, h("td", {}), head("Whole model"), head(name(this.mode)))),
      h("tbody", {}, ...rows.map(([term, value]) => [term, value(this.whole.turn), value(this.other.turn)] as const)
        .filter(([, whole, other]) => whole !== "–" || other !== "–") // the server need not know everything
        .map(([term, whole, other]) => h("tr", {}, h("th", { scope: "row" }, term), h("td", {}, whole), h("td", {}, other)))))
  }

  private replay(): void {
    cancelAnimationFrame(this.frame)
    const took = Math.max(this.whole.took(), this.other.took(), 1)
    const pace = took / Math.max(shortest, Math.min(longest, took)) // of the clock
    this.replayNote.textContent = pace > 0.95 && pace < 1.05 ? "as it happened" : pace < 1 ? `${figure(1 / pace)} times slower than it happened` : `${figure(pace)} times faster than it happened`
    for (const { element } of [this.whole, this.other]) element.style.minHeight = `${element.offsetHeight}px` // nothing below moves
    const began = performance.now()
    const step = () => {
      const at = (performance.now() - began) * pace
      this.whole.replay(at, took)
      this.other.replay(at, took)
      if (at < took) this.frame = requestAnimationFrame(step)
      else this.mark() // the replay has made the answers' elements anew
    }
    step()
  }

  /** mark paints where the answers differ, and gives the share of words that they have in common. */
  private mark(): number {
    const inWhole: [number, number][] = []
    const inOther: [number, number][] = []
    let [at, atOther, same, all] = [0, 0, 0, 0]
    for (const { value, added, removed } of diffWordsWithSpace(this.whole.turn.text, this.other.turn.text)) {
      if (removed) inWhole.push([at, at + value.length])
      if (added) inOther.push([atOther, atOther + value.length])
      if (!added) at += value.length
      if (!removed) atOther += value.length
      const words = value.match(/\S+/g)?.length ?? 0
      all += words
      if (!added && !removed) same += words
    }
    this.whole.mark(inWhole)
    this.other.mark(inOther)
    return same / Math.max(all, 1)
  }
}
