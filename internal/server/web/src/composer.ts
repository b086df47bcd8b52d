// Where questions are typed: the text, the switch of what may be skipped, the gauge.

import type { Props } from "./api"
import { byId, h, svg } from "./dom"
import { kinds, meaning, type Mode } from "./mode"
import { saveSettings, settings } from "./store"

/** ModeSwitch sets what may be skipped; there is one in the chat and one in the comparison. */
export class ModeSwitch {
  readonly element: HTMLElement
  private readonly inputs: HTMLInputElement[] = []
  private readonly range = h("input", { type: "range" })
  private readonly amount = h("output", {})
  private readonly slider = h("label", { class: "amount" }, this.range, this.amount)
  private readonly hint = h("p", { class: "hint" })
  private props: Props | undefined

  /** group is the radio buttons' name; without is what cannot be chosen here. */
  constructor(group: string, private readonly mode: Mode, without: Mode["kind"][] = []) {
    const labels = kinds.filter((kind) => !without.includes(kind)).map((kind) => {
      const input = h("input", { type: "radio", name: group, value: kind, onchange: () => this.choose(kind) })
      this.inputs.push(input)
      return h("label", { title: meaning[kind] }, input, h("span", {}, kind[0]!.toUpperCase() + kind.slice(1)))
    })
    this.range.addEventListener("input", () => {
      if (this.mode.kind === "depth") this.mode.depth = Number(this.range.value)
      else this.mode.quality = Number(this.range.value)
      this.update()
      saveSettings()
    })
    this.element = h("div", { class: "mode" },
      h("fieldset", { class: "switch" }, h("legend", { class: "hidden" }, "What may be skipped"), ...labels), this.slider, this.hint)
    this.update()
  }

  /** set says which model the switch is for. */
  set(props: Props): void {
    this.props = props
    if (!props.profile && (this.mode.kind === "depth" || this.mode.kind === "quality")) this.mode.kind = "routed"
    this.update()
  }

  private choose(kind: Mode["kind"]): void {
    this.mode.kind = kind
    this.update()
    saveSettings()
  }

  private update(): void {
    const { kind } = this.mode
    for (const input of this.inputs) {
      input.checked = input.value === kind
      input.disabled = this.props?.profile === false && (input.value === "depth" || input.value === "quality")
    }
    this.slider.hidden = kind !== "depth" && kind !== "quality"
    if (kind === "depth") {
      Object.assign(this.range, { min: "0.5", max: String(Math.max(1, Math.floor((this.props?.layers ?? 16) / 2))), step: "0.5" })
      this.range.value = String(this.mode.depth)
      this.mode.depth = Number(this.range.value) // within the model's bounds
      this.amount.textContent = `${this.mode.depth} ${this.mode.depth === 1 ? "layer" : "layers"}`
      this.range.setAttribute("aria-label", "Layers to skip")
    } else if (kind === "quality") {
      Object.assign(this.range, { min: "0.8", max: "1", step: "0.01" })
      this.range.value = String(this.mode.quality)
      this.amount.textContent = `${Math.round(this.mode.quality * 100)} %`
      this.range.setAttribute("aria-label", "Quality to keep")
    }
    this.range.setAttribute("aria-valuetext", this.amount.textContent ?? "")
    this.hint.textContent = this.props?.profile === false && kind === "routed"
      ? "This model has no profile yet, so every layer runs; gallop calibrate makes one."
      : meaning[kind]
  }
}

/** Composer is the form below the conversation. */
export class Composer {
  readonly modes = new ModeSwitch("mode", settings.mode)
  private readonly form = byId<HTMLFormElement>("composer")
  private readonly area = byId<HTMLTextAreaElement>("message")
  private readonly send = byId<HTMLButtonElement>("send")
  private readonly stop = byId<HTMLButtonElement>("stop")
  private readonly arc = svg("circle", { cx: 12, cy: 12, r: 9, class: "arc", pathLength: 100 })
  private readonly gaugeText = h("span", { class: "gauge-text" })
  private readonly gauge = byId("gauge")

  constructor(ask: (text: string) => void, stop: () => void, editLast: () => void) {
    byId("mode").append(this.modes.element)
    this.gauge.append(svg("svg", { viewBox: "0 0 24 24", class: "ring", "aria-hidden": "true" }, svg("circle", { cx: 12, cy: 12, r: 9 }), this.arc), this.gaugeText)
    this.area.addEventListener("input", () => this.fit())
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault()
        this.form.requestSubmit()
      } else if (event.key === "ArrowUp" && !this.area.value) {
        event.preventDefault()
        editLast()
      }
    })
    this.form.addEventListener("submit", (event) => {
      event.preventDefault()
      const text = this.area.value.trim()
      if (!text || !this.stop.hidden) return
      this.fill("")
      ask(text)
    })
    this.stop.addEventListener("click", stop)
  }

  /** fill puts text into the field; it is not sent. */
  fill(text: string): void {
    this.area.value = text
    this.fit()
  }

  /** focus goes to the field, but not where that would bring up a keyboard on the screen. */
  focus(): void {
    if (!matchMedia("(pointer: coarse)").matches) this.area.focus()
  }

  /** update shows whether an answer is coming, and how full the context is. */
  update(running: boolean, used: number, context: number): void {
    const had = document.activeElement
    this.send.hidden = running
    this.stop.hidden = !running
    if (had === this.stop && !running) this.area.focus()
    this.gauge.hidden = !context
    if (!context) return
    const share = Math.min(1, used / context)
    this.arc.setAttribute("stroke-dasharray", `${100 * share} 100`)
    this.gauge.classList.toggle("full", share > 0.85)
    this.gauge.setAttribute("aria-valuenow", String(Math.min(used, context)))
    this.gauge.setAttribute("aria-valuemax", String(context))
    this.gauge.setAttribute("aria-valuetext", `${used} of ${context} tokens`)
    this.gauge.title = `The conversation takes ${used} of the context’s ${context} tokens.`
    this.gaugeText.textContent = `${used.toLocaleString("en")} / ${context.toLocaleString("en")}`
  }

  private fit(): void {
    this.area.style.height = "auto"
    this.area.style.height = `${Math.min(this.area.scrollHeight, innerHeight * 0.4)}px`
  }
}

