// The server's API, as far as the page uses it.

export const sources = ["prompt", "mask", "whole", "escalated", "draft"] as const

/** What computed a token. */
export type Source = (typeof sources)[number]

/** A token of an answer. */
export interface Piece {
  text: string
  source: Source
  logprob: number | null // ln of its probability; null = not known
  skip?: string // the mask that the answer was made under when the token came; missing = not known yet
  thought?: boolean // it belongs to the reasoning
}

/** What an answer was made with, and what it cost. */
export interface Summary {
  skip: string
  layers: number
  tps: number
  prompt_tps: number
  first_token_ms: number
  reason?: string
  task?: string // whose calibration the mask comes from
  quality?: number // predicted share of the whole model's probability per token, 0 to 1
  escalated?: number // tokens
  drafted?: number
  accepted?: number
  weights_share?: number // 0 to 1, of the weights' bytes, that a token needed
  mask_off?: boolean // the mask did not pay, and the whole model went on
}

export interface Usage {
  prompt_tokens: number
  completion_tokens: number
  prompt_tokens_details?: { cached_tokens?: number }
}

/** What the server says about a model. */
export interface Props {
  model: string
  n_ctx: number
  layers: number
  profile: boolean
}

export interface Message {
  role: "system" | "user" | "assistant"
  content: string
}

/** What is asked of the model; messages and gallop apart, the fields are OpenAI's. */
export interface Request {
  model?: string
  messages: Message[]
  temperature?: number
  max_tokens?: number
  gallop: { skip: string; lossless?: boolean; detail: true }
}

/** A piece of a streamed answer. */
export interface Chunk {
  choices?: { delta?: { content?: string | null; reasoning_content?: string | null }; finish_reason?: string | null }[]
  usage?: Usage | null
  gallop?: Partial<Summary> & { tokens?: { text: string; source: Source; logprob?: number | null }[] }
}

/** ServerError is a refusal by the server, or its absence. */
export class ServerError extends Error {
  constructor(readonly status: number, message: string) {
    super(message)
  }
}

let key = sessionStorage.getItem("gallop-key") ?? ""

/** setKey keeps the API key until the tab is closed. */
export function setKey(text: string): void {
  key = text
  sessionStorage.setItem("gallop-key", text)
}

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers)
  if (key) headers.set("Authorization", `Bearer ${key}`)
  let response: Response
  try {
    response = await fetch(path, { ...init, headers })
  } catch (error) {
    if (init.signal?.aborted) throw error
    throw new ServerError(0, "Gallop's server does not answer. Is it still running?")
  }
  if (response.ok) return response
  const body = await response.text()
  let message = `The server answered ${response.status} ${response.statusText}.`
  try {
    message = JSON.parse(body).error?.message ?? message
  } catch {
    // no JSON: the status says all there is
  }
  if (response.status === 401) dispatchEvent(new Event("gallop-key-wanted"))
  const wait = response.headers.get("Retry-After")
  throw new ServerError(response.status, wait ? `${message} Try again in ${wait} s.` : message)
}

/** models lists the names of the models that are served. */
export async function models(): Promise<string[]> {
  const list = await (await call("v1/models")).json()
  return (list.data ?? []).map((model: { id: string }) => model.id)
}

/** props describes a model. */
export async function props(model: string): Promise<Props> {
  return (await call(`props?model=${encodeURIComponent(model)}`)).json()
}

/** stream asks a question and gives the answer's chunks as they come, until data: [DONE]. */
export async function* stream(request: Request, signal: AbortSignal): AsyncGenerator<Chunk> {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  })
  const reader = response.body!.getReader()
  const decoder = new TextDecoder()
  let rest = ""
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n")
      rest = lines.pop()!
      for (const line of lines) {
        if (!line.startsWith("data:")) continue
        const data = line.slice(5).trim()
        if (data === "[DONE]") return
        const chunk = JSON.parse(data)
        if (chunk.error) throw new ServerError(0, chunk.error.message ?? "The server could not go on.")
        yield chunk
      }
    }
  } catch (error) {
    if (error instanceof ServerError || signal.aborted) throw error
    throw new ServerError(0, "The connection broke before the answer was complete.")
  }
  throw new ServerError(0, "The connection ended before the answer was complete.")
}
