// The list of conversations: search, rename, delete, export, import.

import { matches, markdown, newId, read, write, type Conversation } from "./conversation"
import { byId, download, h, iconButton, say, toast } from "./dom"

/** What the list does with conversations. */
export interface Library {
  all(): Conversation[]
  current(): Conversation
  open(c: Conversation): void
  save(c: Conversation): void
  remove(c: Conversation): void // for good once the user has had time to take it back
  restore(c: Conversation): void
}

export class Sidebar {
  private readonly list = byId("conversations")
  private drawn = "" // what the list shows, so that it is left alone where it stays the same
  private readonly search = byId<HTMLInputElement>("search")

  constructor(private readonly library: Library) {
    this.search.addEventListener("input", () => this.update())
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") {
        event.preventDefault()
        this.list.querySelector<HTMLElement>(".open")?.focus()
      }
    })
    this.list.addEventListener("keydown", (event) => this.key(event))
    const file = h("input", { type: "file", accept: ".json,application/json", class: "hidden", tabindex: -1, "aria-label": "File of conversations", id: "import-file" })
    file.addEventListener("change", async () => {
      if (file.files?.[0]) await this.take(file.files[0])
      file.value = ""
    })
    byId("export").addEventListener("click", () => {
      download("gallop-conversations.json", "application/json", write(library.all()))
    })
    byId("import").after(file)
    byId("import").addEventListener("click", () => file.click())
  }

  focusSearch(): void {
    this.search.focus()
    this.search.select()
  }

  /** update shows the conversations that the search finds. */
  update(): void {
    const found = this.library.all().filter((c) => c.leaf !== null && (!this.search.value.trim() || matches(c, this.search.value.trim())))
    const groups = new Map<string, Conversation[]>()
    for (const c of found) {
      const group = age(c.updated)
      groups.set(group, [...(groups.get(group) ?? []), c])
    }
    const drawn = JSON.stringify([this.search.value, this.library.current().id, ...[...groups].map(([group, all]) => [group, ...all.map((c) => [c.id, c.title])])])
    const renaming = this.list.querySelector(".rename")
    if (drawn === this.drawn || renaming) return
    this.drawn = drawn
    const focused = document.activeElement?.matches("#conversations .open") ? document.activeElement.closest<HTMLElement>(".entry")?.dataset.id : undefined
    this.list.replaceChildren(...[...groups].flatMap(([group, conversations]) => [
      h("h3", {}, group), h("ul", { "aria-label": group }, ...conversations.map((c) => this.entry(c))),
    ]))
    if (!found.length) {
      this.list.append(h("p", { class: "quiet" }, this.search.value ? "No conversation has these words." : "Conversations are kept in this browser only."))
    }
    if (focused) this.focus(focused)
  }

  private focus(id: string): void {
    this.list.querySelector<HTMLElement>(`[data-id="${id}"] .open`)?.focus()
  }

  private entry(c: Conversation): HTMLElement {
    const current = c === this.library.current()
    return h("li", { class: current ? "entry current" : "entry", "data-id": c.id },
      h("button", { type: "button", class: "open", "aria-current": current && "true", onclick: () => this.library.open(c) }, c.title || "Untitled"),
      h("span", { class: "entry-actions" },
        iconButton("edit", `Rename ${c.title}`, () => this.rename(c)),
        iconButton("save", `Export ${c.title} as Markdown`, () => download(`${fileName(c.title)}.md`, "text/markdown", markdown(c))),
        iconButton("remove", `Delete ${c.title}`, () => this.remove(c))))
  }

  private key(event: KeyboardEvent): void {
    const entries = [...this.list.querySelectorAll<HTMLElement>(".open")]
    const at = entries.indexOf(event.target as HTMLElement)
    if (at < 0) return
    const c = this.library.all().find((c) => c.id === entries[at]!.closest<HTMLElement>(".entry")!.dataset.id)!
    switch (event.key) {
      case "ArrowDown":
        entries[at + 1]?.focus()
        break
      case "ArrowUp":
        ;(entries[at - 1] ?? this.search).focus()
        break
      case "F2":
        this.rename(c)
        break
      case "Delete":
        this.remove(c)
        break
      default:
        return
    }
    event.preventDefault()
  }

  private rename(c: Conversation): void {
    const entry = this.list.querySelector(`[data-id="${c.id}"]`)!
    const input = h("input", { type: "text", value: c.title, "aria-label": "New name", class: "rename" })
    let done = false
    const end = (keep: boolean, byKey: boolean) => {
      if (done) return
      done = true
      if (keep && input.value.trim()) c.title = input.value.trim()
      input.remove()
      this.drawn = "" // the entry is missing now
      this.library.save(c)
      this.update()
      if (byKey) this.focus(c.id)
    }
    input.addEventListener("keydown", (event) => {
      event.stopPropagation()
      if (event.key === "Enter") end(true, true)
      if (event.key === "Escape") end(false, true)
    })
    input.addEventListener("blur", () => end(true, false))
    entry.replaceChildren(input)
    input.focus()
    input.select()
  }

  private remove(c: Conversation): void {
    this.library.remove(c)
    this.update()
    ;(this.list.querySelector<HTMLElement>(".open") ?? this.search).focus()
    say(`Deleted ${c.title}.`)
    toast(`Deleted “${c.title}”.`, { label: "Undo", run: () => {
      this.library.restore(c)
      this.update()
    } })
  }

  private async take(file: File): Promise<void> {
    try {
      if (file.size > largest) throw new Error("This file is larger than 256 MB: conversations are smaller.")
      const taken = read(await file.text())
      const here = new Map(this.library.all().map((c) => [c.id, c]))
      let added = 0
      for (const c of taken) {
        if (here.get(c.id)?.updated === c.updated) continue // it is the same one
        if (here.has(c.id)) c.id = newId()
        this.library.restore(c)
        added++
      }
      toast(`Imported ${added} of ${taken.length} conversations${added < taken.length ? "; the others were here already" : ""}.`)
    } catch (error) {
      toast((error as Error).message)
    }
    this.update()
  }
}

const largest = 256e6 // bytes of a file of conversations

const fileName = (title: string) => title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation"

function age(time: number): string {
  const days = Math.floor((new Date().setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 86_400_000)
  return days <= 0 ? "Today" : days === 1 ? "Yesterday" : days < 7 ? "This week" : days < 31 ? "This month" : "Earlier"
}
