// Masks: which halves of which layers were skipped, read from their text form.

/** Skipped sublayers of a model; each array has one entry per layer, true = skipped. */
export interface Mask {
  attention: boolean[]
  feedForward: boolean[]
}

/**
 * parseMask reads "4,6,f9-11,a5": layers and runs of layers, "a" in front for attention
 * alone, "f" for feed-forward alone. What is no sublayer ("v4096", a shortlist's size) is
 * passed over, as are layers that the model does not have.
 */
export function parseMask(text: string, layers: number): Mask {
  const mask: Mask = { attention: Array(layers).fill(false), feedForward: Array(layers).fill(false) }
  for (const part of text.split(",")) {
    const found = /^([af]?)(\d+)(?:-(\d+))?$/.exec(part.trim())
    if (!found) continue
    const first = Number(found[2])
    const last = Math.min(Number(found[3] ?? first), layers - 1)
    for (let layer = first; layer <= last; layer++) {
      if (found[1] !== "f") mask.attention[layer] = true
      if (found[1] !== "a") mask.feedForward[layer] = true
    }
  }
  return mask
}

/** describe says in a sentence which sublayers a mask skips. */
export function describe(mask: Mask): string {
  const both: number[] = []
  const attention: number[] = []
  const feedForward: number[] = []
  mask.attention.forEach((skipped, layer) => {
    if (skipped && mask.feedForward[layer]) both.push(layer)
    else if (skipped) attention.push(layer)
    else if (mask.feedForward[layer]) feedForward.push(layer)
  })
  const parts = [
    both.length && `${both.length > 1 ? "layers" : "layer"} ${runs(both)}`,
    attention.length && `attention of ${runs(attention)}`,
    feedForward.length && `feed-forward of ${runs(feedForward)}`,
  ].filter(Boolean)
  return parts.length ? `Skipped: ${parts.join("; ")}.` : "Every layer runs."
}

/** layersRun counts the layers that a mask leaves; a half counts ½. */
export function layersRun(mask: Mask): number {
  const ran = (skipped: boolean[]) => skipped.filter((s) => !s).length
  return (ran(mask.attention) + ran(mask.feedForward)) / 2
}

function runs(layers: number[]): string {
  const parts: string[] = []
  for (let i = 0; i < layers.length; i++) {
    const first = layers[i]!
    let last = first
    while (layers[i + 1] === last + 1) last = layers[++i]!
    parts.push(first === last ? `${first}` : last === first + 1 ? `${first}, ${last}` : `${first} to ${last}`)
  }
  return parts.join(", ")
}
