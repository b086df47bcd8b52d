// What of the model may be skipped, as the user has set it.

export const kinds = ["whole", "routed", "depth", "quality", "lossless"] as const

/** Mode is the switch's position, with the amounts of depth and quality. */
export interface Mode {
  kind: (typeof kinds)[number]
  depth: number // layers' worth of weights that are skipped
  quality: number // share of the whole model's probability that is kept, 0 to 1
}

/** What each kind does, in a few words. */
export const meaning: Record<Mode["kind"], string> = {
  whole: "Every layer runs for every token.",
  routed: "The router reads the prompt and picks the layers that can be skipped for it.",
  depth: "This many layers’ worth of weights are skipped; the prompt decides which.",
  quality: "As much is skipped as keeps this share of the whole model’s probability.",
  lossless: "The whole model checks drafts that were made with layers skipped: the answer is its own.",
}

/** request is the mode as the server's API has it. */
export function request(mode: Mode): { skip: string; lossless?: boolean } {
  switch (mode.kind) {
    case "whole":
      return { skip: "off" }
    case "routed":
      return { skip: "routed" }
    case "depth":
      return { skip: `depth=${mode.depth}` }
    case "quality":
      return { skip: `quality=${mode.quality}` }
    case "lossless":
      return { skip: "routed", lossless: true }
  }
}

/** name is the mode in a word or two. */
export function name(mode: Mode): string {
  switch (mode.kind) {
    case "depth":
      return `Depth ${mode.depth}`
    case "quality":
      return `Quality ${Math.round(mode.quality * 100)} %`
    default:
      return mode.kind[0]!.toUpperCase() + mode.kind.slice(1)
  }
}
