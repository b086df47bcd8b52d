// Small helpers to make elements, and the page's icons.

type Child = Node | string | number | null | undefined | false
type Attributes = Record<string, string | number | boolean | null | undefined | ((event: any) => void)>

function fill(element: Element, attributes: Attributes, children: Child[]): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value)
    else if (value === true) element.setAttribute(name, "")
    else if (value !== false && value != null) element.setAttribute(name, String(value))
  }
  for (const child of children) {
    if (child !== null && child !== undefined && child !== false) element.append(child instanceof Node ? child : String(child))
  }
}

/** h makes an HTML element; an attribute "onclick" with a function listens to clicks. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  fill(element, attributes, children)
  return element
}

/** svg makes an SVG element. */
export function svg<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): SVGElementTagNameMap[K] {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag)
  fill(element, attributes, children)
  return element
}

/** byId finds an element that page.html has. */
export function byId<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id)
  if (!element) throw new Error(`page.html has no #${id}`)
  return element as T
}

const paths = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  again: "M19 12a7 7 0 1 1-2-5M19 3v5h-5",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  open: "M12 16V5M7 9l5-5 5 5M5 20h14",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  close: "M6 6l12 12M18 6L6 18",
  layers: "M5 5h6v3H5zM13 5h6v3h-6zM5 11h6v3H5zM13 11h6v3h-6zM5 17h6v3H5zM13 17h6v3h-6z",
  tokens: "M4 8h7v8H4zM13 8h3v8h-3zM18 8h2v8h-2z",
  settings: "M4 8h9M17 8h3M4 16h3M11 16h9M15 5.5v5M9 13.5v5",
  help: "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2M12 17.5v.5",
  play: "M8 5l11 7-11 7z",
} as const

export type Icon = keyof typeof paths

/** icon draws one of the page's icons; it has no name for screen readers, so its button needs one. */
export function icon(name: Icon): SVGSVGElement {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: paths[name] }))
}

/** iconButton is a button that shows an icon alone; label names it. */
export function iconButton(name: Icon, label: string, onclick: () => void, more: Attributes = {}): HTMLButtonElement {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...more }, icon(name))
}

/** say has a screen reader speak a sentence. */
export function say(sentence: string): void {
  byId("announcer").textContent = sentence
}

/** toast shows a sentence for a while, with something to do about it if action is given. */
export function toast(sentence: string, action?: { label: string; run: () => void }): void {
  const box = byId("toast")
  const close = () => box.replaceChildren()
  clearTimeout(toastTimer)
  box.replaceChildren(
    h("div", { class: "toast" }, h("span", {}, sentence),
      action && h("button", { type: "button", class: "quiet-button", onclick: () => { close(); action.run() } }, action.label),
      iconButton("close", "Close this message", close)),
  )
  toastTimer = window.setTimeout(close, action ? 12000 : 6000)
}

let toastTimer = 0

/** copy puts text on the clipboard, in pages without a secure origin too. */
export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text)
    return
  }
  const area = h("textarea", { class: "hidden" })
  area.value = text
  document.body.append(area)
  area.select()
  document.execCommand("copy")
  area.remove()
}

/** download gives the user a file. */
export function download(name: string, type: string, content: string): void {
  const url = URL.createObjectURL(new Blob([content], { type }))
  h("a", { href: url, download: name }).click()
  setTimeout(() => URL.revokeObjectURL(url), 10000)
}

const whole = new Intl.NumberFormat("en")

/** figure writes a number with three significant digits or more: 2774, 57.1, 0.95. */
export function figure(n: number): string {
  if (Math.abs(n) >= 1000) return whole.format(Math.round(n))
  return String(Number(n.toPrecision(3)))
}

/** duration writes milliseconds as 420 ms or 1.3 s. */
export function duration(ms: number): string {
  return ms < 1000 ? `${figure(Math.round(ms * (ms < 10 ? 10 : 1)) / (ms < 10 ? 10 : 1))} ms` : `${figure(ms / 1000)} s`
}
