// The picture of the model: the residual stream with every layer's two halves beside it.

import { h, svg } from "./dom"
import { describe, parseMask, type Mask } from "./mask"

const still = matchMedia("(prefers-reduced-motion: reduce)")

interface Half {
  box: SVGElement
  name: string // "Layer 3, attention"
  skipped(mask: Mask): boolean
}

abstract class Picture {
  readonly element: SVGSVGElement
  protected halves: Half[] = []
  private layers = -1
  private text = ""
  private flashed = 0

  constructor(kind: string) {
    this.element = svg("svg", { class: `picture ${kind}`, role: "img", "aria-label": "The model’s layers" })
  }

  protected abstract draw(layers: number): void

  protected half(box: SVGElement, layer: number, of: keyof Mask, layers: number): SVGElement {
    box.classList.add("half", of === "attention" ? "attention" : "feed-forward")
    box.style.setProperty("--at", String(layer / layers))
    box.append(svg("title"))
    this.halves.push({
      box, name: `Layer ${layer}, ${of === "attention" ? "attention" : "feed-forward"}`, skipped: (mask) => mask[of][layer]!,
    })
    return box
  }

  /** show draws a model of this many layers under a mask. */
  show(layers: number, skip: string): void {
    if (layers === this.layers && skip === this.text) return
    if (layers !== this.layers) {
      this.halves = []
      this.element.replaceChildren()
      this.draw(layers)
    }
    this.layers = layers
    this.text = skip
    const mask = parseMask(skip, layers)
    for (const { box, name, skipped } of this.halves) {
      const is = skipped(mask)
      box.classList.toggle("skipped", is)
      box.querySelector("title")!.textContent = `${name}: ${is ? "skipped" : "ran"}`
    }
    this.element.setAttribute("aria-label", `The model’s ${layers} layers. ${describe(mask)}`)
  }

  /** run lets a wave go through the layers while tokens come. */
  run(running: boolean): void {
    this.element.classList.toggle("running", running)
  }

  /** flash lights the skipped halves: the whole model decides a token. */
  flash(): void {
    const now = performance.now()
    if (still.matches || now - this.flashed < 300) return
    this.flashed = now
    for (const box of this.element.querySelectorAll(".skipped")) {
      box.animate([{ fill: "var(--escalated)", stroke: "var(--escalated)" }, {}], { duration: 700, easing: "ease-out" })
    }
  }
}

/** Tower stands upright: the prompt comes in below, the next token leaves above. */
export class Tower extends Picture {
  constructor() {
    super("tower")
  }

  protected draw(layers: number): void {
    const pitch = Math.max(5, Math.min(21, 400 / layers))
    const top = 38
    const height = layers * pitch
    this.element.setAttribute("viewBox", `0 0 260 ${height + top + 30}`)
    const every = pitch >= 12 ? 1 : pitch >= 7 ? 4 : 8
    const stream = svg("g", { class: "stream" },
      svg("path", { d: `M130 ${height + top + 12}V${top - 14}` }),
      svg("path", { d: `M124 ${top - 10}l6 -8l6 8`, class: "tip" }),
      svg("text", { x: 130, y: height + top + 26, "text-anchor": "middle" }, "prompt"),
      svg("text", { x: 130, y: 11, "text-anchor": "middle" }, "next token"),
      svg("text", { x: 26, y: top - 8, class: "attention-name" }, "attention"),
      svg("text", { x: 234, y: top - 8, "text-anchor": "end", class: "feed-forward-name" }, "feed-forward"))
    this.element.append(stream)
    for (let layer = 0; layer < layers; layer++) {
      const y = top + height - (layer + 1) * pitch
      const box = { y: y + pitch * 0.13, width: 84, height: pitch * 0.74, rx: Math.min(5, pitch / 5) }
      const middle = y + pitch / 2
      this.element.append(
        svg("path", { class: "join", d: `M110 ${middle}H150` }),
        this.half(svg("rect", { x: 26, ...box }), layer, "attention", layers),
        this.half(svg("rect", { x: 150, ...box }), layer, "feedForward", layers))
      if (layer % every === 0) this.element.append(svg("text", { x: 16, y: middle + 3.5, "text-anchor": "end", class: "number" }, layer))
    }
    this.element.append(svg("circle", { class: "pulse", cx: 130, cy: height + top, r: 5 }))
    this.element.style.setProperty("--rise", `${-height}px`)
  }
}

/** Strip lies: the first layer left, attention above, feed-forward below. */
export class Strip extends Picture {
  constructor() {
    super("strip")
  }

  protected draw(layers: number): void {
    this.element.setAttribute("viewBox", `0 0 ${layers * 10} 22`)
    this.element.setAttribute("preserveAspectRatio", "none")
    for (let layer = 0; layer < layers; layer++) {
      const box = { x: layer * 10 + 1, width: 8, height: 9, rx: 2 }
      this.element.append(
        this.half(svg("rect", { y: 1, ...box }), layer, "attention", layers),
        this.half(svg("rect", { y: 12, ...box }), layer, "feedForward", layers))
    }
  }
}

/** legend explains the colours of pictures, and those of text that are named here by kind. */
export function legend(texts: Record<string, string>): HTMLElement {
  const entries = { attention: "attention", "feed-forward": "feed-forward", skipped: "skipped", ...texts }
  return h("ul", { class: "legend", "aria-label": "Colours" }, ...Object.entries(entries).map(([kind, text]) =>
    h("li", {}, h("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), text)))
}
