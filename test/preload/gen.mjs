// Writes the greedy continuation of a prompt, which may hold special tokens, as one line of JSON:
// {"text": "...", "tokens": [...]}. Usage: node gen.mjs model.gguf prompt count
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [path, prompt, count] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1 });
const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
const context = await model.createContext({ contextSize: 256, threads: 1 });
const sequence = context.getSequence();
const tokens = [];
for await (const token of sequence.evaluate(model.tokenize(prompt, true), { temperature: 0 })) {
    tokens.push(token);
    if (tokens.length >= Number(count)) {
        break;
    }
}
console.log(JSON.stringify({ text: model.detokenize(tokens), tokens }));
await llama.dispose();
