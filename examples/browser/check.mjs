// Run a graph in onnxruntime-web under Node, to compare its numbers with another runtime's.
//
//     node check.mjs GRAPH IMAGE.f32 1,3,224,224 FOLDER
//
// IMAGE.f32 holds float32 values as numpy's tofile writes them. Each output goes to FOLDER/NAME.f32, and to stdout
// one line of JSON with the shapes and the milliseconds of the second run.

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-web/wasm";

const [graph, image, shape, folder] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(await readFile(graph), { executionProviders: ["wasm"] });
const bytes = await readFile(image);
const pixels = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
const feeds = { [session.inputNames[0]]: new ort.Tensor("float32", pixels, shape.split(",").map(Number)) };
await session.run(feeds);
const start = performance.now();
const results = await session.run(feeds);
const milliseconds = performance.now() - start;
const shapes = {};
for (const [name, tensor] of Object.entries(results)) {
  shapes[name] = tensor.dims;
  await writeFile(join(folder, `${name}.f32`), tensor.data);
}
console.log(JSON.stringify({ version: ort.env.versions.web, milliseconds, shapes }));
