// One answer, from the request to its last token.

import { stream, type Chunk, type Message, type Piece, type Request, type Summary } from "./api"
import type { Turn } from "./conversation"
import { request as modeRequest } from "./mode"
import { noteWhole, settings } from "./store"

/** messages is what a conversation's path says to the model. Questions without an answer are left out, but for the last. */
export function messages(turns: Turn[]): Message[] {
  const said: Message[] = turns.filter((turn, i) => turn.text && turns[i + 1]?.text !== "").map((turn) => ({ role: turn.role, content: turn.text }))
  return settings.system.trim() ? [{ role: "system", content: settings.system }, ...said] : said
}

/**
 * answer asks for turn, an answer in the state "running" with its mode and model, and fills
 * it as tokens come; changed is called after each of the stream's chunks. It ends when the
 * answer has, whatever the reason; turn.state says which. temperature is as in settings.
 */
export async function answer(turn: Turn, said: Message[], signal: AbortSignal, changed: () => void, temperature = settings.temperature): Promise<void> {
  const began = performance.now()
  const request: Request = { messages: said, gallop: { ...modeRequest(turn.mode!), detail: true } }
  if (turn.model) request.model = turn.model
  if (temperature !== "") request.temperature = Number(temperature)
  if (settings.maxTokens !== "") request.max_tokens = Number(settings.maxTokens)
  turn.pieces = []
  if (turn.mode!.kind === "whole" || turn.mode!.kind === "lossless") turn.skip = "" // known beforehand
  try {
    for await (const chunk of stream(request, signal)) {
      take(turn, chunk)
      turn.milliseconds = performance.now() - began
      changed()
    }
    turn.state = "done"
    if (turn.summary && turn.mode!.kind === "whole") noteWhole(turn.model ?? "", turn.summary.tps, turn.usage?.completion_tokens ?? 0)
  } catch (error) {
    turn.state = signal.aborted ? "stopped" : "failed"
    if (!signal.aborted) turn.error = error instanceof Error ? error.message : String(error)
  }
  turn.milliseconds = performance.now() - began
  changed()
}

function take(turn: Turn, chunk: Chunk): void {
  const choice = chunk.choices?.[0]
  turn.text += choice?.delta?.content ?? ""
  if (choice?.delta?.reasoning_content) turn.reasoning = (turn.reasoning ?? "") + choice.delta.reasoning_content
  if (choice?.finish_reason === "length") turn.full = true
  if (chunk.usage) turn.usage = chunk.usage
  const detail = chunk.gallop
  if (!detail) return
  if (detail.skip !== undefined) {
    turn.skip = detail.skip
    // The mask may become known after its first tokens.
    for (let i = turn.pieces!.length - 1; turn.pieces![i]?.skip === undefined && i >= 0; i--) turn.pieces![i]!.skip = detail.skip
  }
  const thought = Boolean(choice?.delta?.reasoning_content && !choice.delta.content)
  for (const token of detail.tokens ?? []) {
    const piece: Piece = { text: token.text, source: token.source, logprob: token.logprob ?? null }
    if (turn.skip !== undefined) piece.skip = turn.skip
    if (thought) piece.thought = true
    turn.pieces!.push(piece)
  }
  if (detail.layers !== undefined) turn.summary = detail as Summary
}
