// Markdown that grows: only the blocks that changed are made anew. What the model writes
// never becomes HTML of its own: tags are shown as text, images as links.

import DOMPurify from "dompurify"
import { Marked, type Token, type Tokens, type TokensList } from "marked"
import hljs from "./highlight"
import { copy, h, icon, say } from "./dom"

const escapes: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }
const escape = (text: string) => text.replace(/[&<>"]/g, (c) => escapes[c]!)

const longCode = 50_000 // characters; longer code stays plain, colouring it would stutter

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escape(text),
    image({ href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`
    },
    heading({ tokens, depth }) {
      // The page's own headings come first.
      const level = Math.min(depth + 2, 6)
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code({ text, lang }: Tokens.Code) {
      const language = /^[\w+#.-]*/.exec(lang ?? "")![0]
      const known = text.length < longCode && hljs.getLanguage(language)
      const body = known ? hljs.highlight(text, { language, ignoreIllegals: true }).value : escape(text)
      return `<pre title="${escape(language)}"><code>${body}</code></pre>`
    },
  },
})

const allowed = {
  ALLOWED_TAGS: ["p", "br", "strong", "em", "del", "code", "pre", "span", "a", "ul", "ol", "li", "blockquote", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "hr"],
  ALLOWED_ATTR: ["href", "class", "align", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
}

function render(token: Token, links: TokensList["links"]): DocumentFragment {
  const list = Object.assign([token], { links })
  const fragment = DOMPurify.sanitize(marked.parser(list), allowed)
  for (const a of fragment.querySelectorAll("a")) {
    a.target = "_blank"
    a.rel = "noopener noreferrer nofollow"
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" })
    table.replaceWith(box)
    box.append(table)
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const language = pre.title || "text"
    pre.removeAttribute("title")
    pre.tabIndex = 0
    pre.setAttribute("role", "region")
    pre.setAttribute("aria-label", `Code, ${language}`)
    const button = h("button", { type: "button", class: "quiet-button", onclick: async () => {
      await copy(pre.textContent ?? "")
      say("Code copied.")
      button.lastChild!.textContent = "Copied"
      setTimeout(() => (button.lastChild!.textContent = "Copy"), 2000)
    } }, icon("copy"), h("span", {}, "Copy"))
    const box = h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, language), button))
    pre.replaceWith(box)
    box.append(pre)
  }
  return fragment
}

/** Markdown shows a text that may still grow. */
export class Markdown {
  readonly element = h("div", { class: "markdown" })
  private shown: string[] = [] // the source of each block

  /** set shows text. */
  set(text: string): void {
    const tokens = marked.lexer(text)
    let same = 0
    while (same < tokens.length && tokens[same]!.raw === this.shown[same]) same++
    while (this.element.children.length > same) this.element.lastElementChild!.remove()
    for (const token of tokens.slice(same)) {
      this.element.append(h("div", { class: "block" }, render(token, tokens.links)))
    }
    this.shown = tokens.map((token) => token.raw)
  }
}
