// Where the browser keeps conversations (IndexedDB) and settings (localStorage).

import type { Conversation } from "./conversation"
import type { Mode } from "./mode"

let database: IDBDatabase | undefined

/** open opens the browser's database and gives the conversations, latest first. */
export async function open(): Promise<Conversation[]> {
  const request = indexedDB.open("gallop", 1)
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" })
  database = await promise(request)
  const all: Conversation[] = await promise(database.transaction("conversations").objectStore("conversations").getAll())
  for (const turn of all.flatMap((c) => Object.values(c.turns))) {
    if (turn.state === "running") turn.state = "stopped" // the page was closed meanwhile
  }
  return all.sort((a, b) => b.updated - a.updated)
}

/** put keeps a conversation, together with the turns that another tab has added to it. */
export async function put(c: Conversation): Promise<void> {
  if (!database) return
  const store = database.transaction("conversations", "readwrite").objectStore("conversations")
  const kept: Conversation | undefined = await promise(store.get(c.id))
  c.turns = { ...kept?.turns, ...c.turns }
  await promise(store.put(c))
}

/** remove forgets a conversation. */
export async function remove(c: Conversation): Promise<void> {
  if (database) await promise(database.transaction("conversations", "readwrite").objectStore("conversations").delete(c.id))
}

function promise<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

/** Settings are what the user has chosen for all conversations. */
export interface Settings {
  mode: Mode
  model: string // "" = the first that is served
  system: string // the system message; "" = none
  temperature: string // "" = the model's own
  maxTokens: string // "" = until the model ends
  theme: "auto" | "light" | "dark"
  picture: boolean // the picture of the model is shown beside the chat
}

export const settings: Settings = {
  mode: { kind: "routed", depth: 2, quality: 0.95 },
  model: "", system: "", temperature: "", maxTokens: "", theme: "auto", picture: true,
  ...kept("gallop-settings"),
}

/** saveSettings keeps what settings has now. */
export function saveSettings(): void {
  localStorage.setItem("gallop-settings", JSON.stringify(settings))
}

function kept(name: string): any {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "null") ?? undefined
  } catch {
    return undefined // not ours, or from another time
  }
}

const remembered = 9 // answers; the median of so few follows a change of the machine soon
const enough = 8 // tokens of an answer, fewer are timed too roughly

/** noteWhole remembers how fast the whole model answered, in tokens/s. */
export function noteWhole(model: string, tps: number, tokens: number): void {
  if (tokens < enough || !(tps > 0)) return
  const speeds: number[] = kept(`gallop-whole ${model}`) ?? []
  localStorage.setItem(`gallop-whole ${model}`, JSON.stringify([...speeds, tps].slice(-remembered)))
}

/** wholeSpeed is the median of the whole model's last speeds, in tokens/s, and of how many; undefined = not seen yet. */
export function wholeSpeed(model: string): { tps: number; answers: number } | undefined {
  const speeds: number[] = kept(`gallop-whole ${model}`) ?? []
  if (!speeds.length) return undefined
  const sorted = speeds.toSorted((a, b) => a - b)
  return { tps: sorted[sorted.length >> 1]!, answers: speeds.length }
}
