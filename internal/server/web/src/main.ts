// The page: what is where, and what the keys do.

import { models, props, ServerError, setKey, type Props } from "./api"
import { Chat } from "./chat"
import { Compare } from "./compare"
import { Composer } from "./composer"
import { newConversation, used, type Conversation } from "./conversation"
import { byId, h, icon, say, toast, type Icon } from "./dom"
import { Panel } from "./panel"
import { Sidebar } from "./sidebar"
import { open, put, remove, saveSettings, settings } from "./store"

let conversations: Conversation[] = []
let model: Props | undefined

for (const place of document.querySelectorAll<HTMLElement>("[data-icon]")) place.prepend(icon(place.dataset.icon as Icon))

const removed = new Set<Conversation>() // an answer of theirs may still be ending
const keep = (c: Conversation) => {
  if (removed.has(c)) return
  if (!conversations.includes(c)) conversations.unshift(c)
  conversations.sort((a, b) => b.updated - a.updated)
  put(c).catch((error: Error) => toast(`The browser could not keep this conversation: ${error.message}`))
}

const panel = new Panel(() => model?.layers ?? 0, (turn) => {
  compare.fill(chat.conversation.turns[turn.parent!]?.text ?? "")
  location.hash = "#compare"
})
byId("panel-body").append(panel.element)

const chat = new Chat({
  props: () => model,
  panel,
  save(c) {
    keep(c)
    sidebar.update()
  },
  changed: () => composer.update(chat.running() !== undefined, used(chat.conversation), model?.n_ctx ?? 0),
})

const composer = new Composer((text) => chat.ask(text), () => chat.stop(), () => chat.editLast())
const compare = new Compare(() => model)

const sidebar = new Sidebar({
  all: () => conversations,
  current: () => chat.conversation,
  open: show,
  save: keep,
  remove(c) {
    removed.add(c)
    chat.forget(c)
    conversations = conversations.filter((other) => other !== c)
    void remove(c)
    if (c === chat.conversation) chat.open(newConversation())
  },
  restore(c) {
    removed.delete(c)
    keep(c)
  },
})

function show(c: Conversation): void {
  location.hash = ""
  route() // at once: what is hidden takes no focus
  drawers(false)
  chat.open(c)
  sidebar.update()
  composer.focus()
}

// Views and drawers.

function route(): void {
  const comparing = location.hash === "#compare"
  document.body.classList.toggle("comparing", comparing)
  byId("to-chat").setAttribute("aria-current", comparing ? "false" : "page")
  byId("to-compare").setAttribute("aria-current", comparing ? "page" : "false")
  byId("chat").hidden = comparing
  byId("compare").hidden = !comparing
  if (comparing) compare.focus()
  else composer.focus()
}
addEventListener("hashchange", route)

const narrow = matchMedia("(max-width: 1100px)")

/** drawers opens or closes what covers the chat on a narrow screen. */
function drawers(which: false | "side-open" | "panel-open"): void {
  const covered = document.body.matches(".side-open, .panel-open")
  document.body.classList.toggle("side-open", which === "side-open")
  document.body.classList.toggle("panel-open", which === "panel-open")
  byId("main").inert = which !== false && narrow.matches
  if (which) byId(which === "side-open" ? "close-side" : "close-panel").focus()
  else if (covered && narrow.matches) composer.focus()
}
byId("open-side").addEventListener("click", () => drawers("side-open"))
byId("close-side").addEventListener("click", () => drawers(false))
byId("close-panel").addEventListener("click", () => (narrow.matches ? drawers(false) : picture(false)))
byId("backdrop").addEventListener("click", () => drawers(false))
narrow.addEventListener("change", () => drawers(false))

function picture(shown: boolean): void {
  settings.picture = shown
  saveSettings()
  document.body.classList.toggle("no-panel", !shown)
  byId("toggle-panel").setAttribute("aria-expanded", String(shown))
}
byId("toggle-panel").addEventListener("click", () => (narrow.matches ? drawers("panel-open") : picture(!settings.picture)))
picture(settings.picture)

byId("new").addEventListener("click", () => show(newConversation()))

// Dialogs.

const helpDialog = byId<HTMLDialogElement>("help-dialog")
const settingsDialog = byId<HTMLDialogElement>("settings-dialog")
const keyDialog = byId<HTMLDialogElement>("key-dialog")
byId("help").addEventListener("click", () => helpDialog.showModal())
byId("settings").addEventListener("click", () => settingsDialog.showModal())
for (const name of ["theme", "system", "temperature", "maxTokens"] as const) {
  const field = byId<HTMLInputElement>(`setting-${name}`)
  field.value = settings[name]
  field.addEventListener("change", () => {
    if (!field.checkValidity()) return
    ;(settings as any)[name] = field.value
    saveSettings()
    theme()
  })
}
function theme(): void {
  document.documentElement.dataset.theme = settings.theme
}
theme()

addEventListener("gallop-key-wanted", () => {
  if (!keyDialog.open) keyDialog.showModal()
})
keyDialog.addEventListener("close", () => {
  setKey(byId<HTMLInputElement>("key").value)
  void connect()
})

// Keys.

addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey
  const typing = (event.target as Element).matches("input, textarea, select")
  if (document.querySelector("dialog[open]")) return
  if (event.key === "Escape") {
    if (document.body.matches(".side-open, .panel-open") && narrow.matches) drawers(false)
    else if (!(location.hash === "#compare" && compare.stop())) chat.stop()
  } else if (command && event.key.toLowerCase() === "k") {
    if (narrow.matches) drawers("side-open")
    sidebar.focusSearch()
  } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    show(newConversation())
  } else if (event.key === "/" && !typing) {
    composer.focus()
  } else if (event.key === "?" && !typing) {
    helpDialog.showModal()
  } else {
    return
  }
  event.preventDefault()
})

// The model.

const choice = byId<HTMLSelectElement>("model")
choice.addEventListener("change", () => {
  settings.model = choice.value
  saveSettings()
  void connect()
})

/** connect asks the server which models it has and what the chosen one is like. */
async function connect(): Promise<void> {
  const status = byId("status")
  try {
    const names = await models()
    if (!names.includes(settings.model)) settings.model = names[0] ?? ""
    choice.replaceChildren(...names.map((name) => h("option", { value: name, selected: name === settings.model }, name)))
    choice.disabled = names.length < 2
    model = await props(settings.model)
    status.textContent = ""
    composer.modes.set(model)
    compare.set(model)
    panel.update()
    chat.open(chat.conversation)
  } catch (error) {
    if (error instanceof ServerError && error.status === 401) return
    status.textContent = error instanceof ServerError && error.status === 503 ? "The model is being loaded…" : (error as Error).message
    setTimeout(() => void connect(), 2000)
  }
}

for (const button of document.querySelectorAll<HTMLButtonElement>(".example")) {
  button.addEventListener("click", () => {
    composer.fill(button.textContent!)
    composer.focus()
  })
}

async function start(): Promise<void> {
  try {
    conversations = await open()
  } catch (error) {
    toast(`This browser keeps nothing for the page (${(error as Error).message}): conversations end with it.`)
  }
  const latest = conversations[0]
  const asked = new URL(location.href).searchParams.get("q")
  chat.open(latest && asked === null ? latest : newConversation())
  if (asked !== null) {
    composer.fill(asked) // never sent: another page may have made this link
    compare.fill(asked)
    history.replaceState(null, "", location.pathname + location.hash)
    say("The question is filled in. Enter sends it.")
  }
  sidebar.update()
  route()
  await connect()
  document.body.dataset.ready = ""
}
void start()
