// Conversations: trees of turns. An edited question and an answer asked for again are
// siblings of the first one, so nothing that was said is lost.

import { sources, type Piece, type Summary, type Usage } from "./api"
import { kinds, type Mode } from "./mode"

/** Turn is a question or an answer. */
export interface Turn {
  id: string
  parent: string | null // null = a first question
  role: "user" | "assistant"
  text: string
  created: number // ms since 1970

  // Of answers.
  state?: "running" | "done" | "stopped" | "failed"
  error?: string // why it failed
  full?: boolean // it ended at its limit of tokens
  reasoning?: string // what the model thought before it answered
  mode?: Mode
  model?: string
  pieces?: Piece[]
  skip?: string // the mask; missing = not known yet
  summary?: Summary // missing if the answer was not complete
  usage?: Usage
  milliseconds?: number // from the question to the answer's end, as seen by the page
}

/** Conversation is what the browser keeps. */
export interface Conversation {
  id: string
  title: string
  created: number
  updated: number
  turns: Record<string, Turn>
  leaf: string | null // the last turn that is shown
}

/** newId makes an identifier; crypto.randomUUID is missing on pages without HTTPS. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("")
}

export function newConversation(): Conversation {
  const now = Date.now()
  return { id: newId(), title: "", created: now, updated: now, turns: {}, leaf: null }
}

/** add puts a turn behind parent and shows it. */
export function add(c: Conversation, parent: string | null, turn: Pick<Turn, "role" | "text"> & Partial<Turn>): Turn {
  const made: Turn = { id: newId(), parent, created: Date.now(), ...turn }
  c.turns[made.id] = made
  c.leaf = made.id
  c.updated = made.created
  c.title ||= titleOf(made.text)
  return made
}

function titleOf(question: string): string {
  const line = question.trim().split("\n")[0]!.replace(/\s+/g, " ")
  return line.length > 60 ? line.slice(0, 59).trimEnd() + "…" : line
}

/** path lists the turns that are shown, first question first. */
export function path(c: Conversation, leaf = c.leaf): Turn[] {
  const turns: Turn[] = []
  for (let turn = leaf === null ? undefined : c.turns[leaf]; turn; turn = turn.parent === null ? undefined : c.turns[turn.parent]) {
    turns.unshift(turn)
  }
  return turns
}

/** siblings lists the turns that stand in the same place, oldest first, turn among them. */
export function siblings(c: Conversation, turn: Turn): Turn[] {
  return Object.values(c.turns).filter((t) => t.parent === turn.parent).sort((a, b) => a.created - b.created)
}

/** show makes turn part of the path, with the latest turns behind it. */
export function show(c: Conversation, turn: Turn): void {
  for (;;) {
    c.leaf = turn.id
    const next = Object.values(c.turns).filter((t) => t.parent === turn.id).sort((a, b) => b.created - a.created)[0]
    if (!next) return
    turn = next
  }
}

/** matches tells whether every word of a search is somewhere in the conversation. */
export function matches(c: Conversation, search: string): boolean {
  const text = [c.title, ...Object.values(c.turns).map((t) => t.text)].join("\n").toLowerCase()
  return search.toLowerCase().split(/\s+/).every((word) => text.includes(word))
}

/** used counts the tokens of the context that the path takes; it is known up to the last answer. */
export function used(c: Conversation): number {
  const answers = path(c).filter((t) => t.role === "assistant")
  let after = 0
  for (const answer of answers.reverse()) {
    if (answer.usage) return answer.usage.prompt_tokens + answer.usage.completion_tokens + after
    after += answer.pieces?.length ?? 0
  }
  return after
}

const fileFormat = "gallop-conversations"

/** write is the text of a file of conversations, for read. */
export function write(conversations: Conversation[]): string {
  return JSON.stringify({ format: fileFormat, version: 1, conversations }, null, 1)
}

/** read takes conversations from a file's text. The error's message is for the user. */
export function read(text: string): Conversation[] {
  let file: any
  try {
    file = JSON.parse(text)
  } catch {
    throw new Error("This file is not JSON. Choose a file that Gallop exported.")
  }
  if (file?.format !== fileFormat || !Array.isArray(file.conversations)) {
    throw new Error("This file does not hold conversations. Choose a file that Gallop exported.")
  }
  if (file.version !== 1) throw new Error(`This file has version ${file.version}; this page reads version 1.`)
  return file.conversations.map((c: any, i: number) => {
    const wrong = (what: string) => new Error(`Conversation ${i + 1} of this file is damaged: ${what}.`)
    if (typeof c?.id !== "string" || typeof c.title !== "string" || typeof c.turns !== "object" || c.turns === null) throw wrong("it lacks its name or its turns")
    for (const [id, turn] of Object.entries<any>(c.turns)) {
      if (turn?.id !== id || typeof turn.text !== "string" || !["user", "assistant"].includes(turn.role) || typeof turn.created !== "number") throw wrong("a turn lacks its text or its role")
      if (turn.parent !== null && !Object.hasOwn(c.turns, turn.parent)) throw wrong("a turn answers one that is missing")
      const above = new Set<string>()
      for (let t = turn; t; t = t.parent === null ? null : c.turns[t.parent]) {
        if (above.has(t.id)) throw wrong("its turns go in a circle")
        above.add(t.id)
      }
    }
    if (c.leaf !== null && !Object.hasOwn(c.turns, c.leaf)) throw wrong("its last turn is missing")
    const turns = Object.fromEntries(Object.values<any>(c.turns).map((turn) => [turn.id, clean(turn)]))
    const id = /^[\w-]{1,64}$/.test(c.id) ? c.id : newId()
    return { id, title: c.title, created: Number(c.created) || 0, updated: Number(c.updated) || 0, turns, leaf: c.leaf }
  })
}

/** clean is a turn of a file without what the page could not show. */
function clean(turn: any): Turn {
  const { id, parent, role, text, created } = turn
  const cleaned: Turn = { id, parent, role, text, created }
  if (role === "user") return cleaned
  const isNumber = (n: any) => typeof n === "number" && Number.isFinite(n)
  const optional = (n: any) => n === undefined || isNumber(n)
  cleaned.state = turn.state === "done" || turn.state === "failed" ? turn.state : "stopped"
  for (const name of ["error", "reasoning", "model", "skip"] as const) {
    if (typeof turn[name] === "string") cleaned[name] = turn[name]
  }
  if (turn.full === true) cleaned.full = true
  if (isNumber(turn.milliseconds)) cleaned.milliseconds = turn.milliseconds
  const m = turn.mode
  if (kinds.includes(m?.kind) && isNumber(m.depth) && isNumber(m.quality)) cleaned.mode = { kind: m.kind, depth: m.depth, quality: m.quality }
  const isPiece = (p: any) => typeof p?.text === "string" && sources.includes(p.source) && (p.logprob === null || isNumber(p.logprob)) && ["string", "undefined"].includes(typeof p.skip)
  if (Array.isArray(turn.pieces) && turn.pieces.every(isPiece)) cleaned.pieces = turn.pieces
  const u = turn.usage
  if (isNumber(u?.prompt_tokens) && isNumber(u.completion_tokens) && optional(u.prompt_tokens_details?.cached_tokens)) cleaned.usage = u
  const s = turn.summary
  const inBounds = isNumber(s?.layers) && s.layers >= 1 && s.layers <= mostLayers
  if (inBounds && [s.tps, s.prompt_tps, s.first_token_ms].every(isNumber) && [s.escalated, s.drafted, s.accepted, s.weights_share, s.quality].every(optional)) cleaned.summary = s
  return cleaned
}

const mostLayers = 512 // of any model that Gallop runs

/** markdown is the shown path of a conversation as a document. */
export function markdown(c: Conversation): string {
  const parts = path(c).map((turn) => `## ${turn.role === "user" ? "Question" : "Answer"}\n\n${turn.text.trim()}\n`)
  return `# ${c.title}\n\n${parts.join("\n")}`
}
