// Classify a photo and draw |∂ largest logit / ∂ image| over it, with a graph that `sad-deploy gradient` wrote.

// Each can be given in the address: ?model=…&image=…&mean=0.5&std=0.25. The graph's input is the network's own,
// so mean and std are what the network was trained with: 0 and 1 where it takes pixels in [0, 1].
const settings = {
  model: "model.gradient.onnx",
  image: "",
  mean: "0.485,0.456,0.406",
  std: "0.229,0.224,0.225",
  ...Object.fromEntries(new URLSearchParams(location.search)),
};
const HEAT = [255, 106, 0];
const element = id => document.getElementById(id);

/** What is wrong, as the page says it. */
class Problem extends Error {}

const problem = text => () => {
  throw new Problem(text);
};

async function download(address) {
  const answer = await fetch(address, { cache: "no-cache" }).catch(problem(`${address} cannot be loaded`));
  if (!answer.ok) throw new Problem(`${address} cannot be loaded (${answer.status})`);
  return answer.blob();
}

/** The session on a graph, its input's name and size, and the normalisation for it. */
async function load(address) {
  const ort = await import("./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs").catch(
    problem("onnxruntime-web is missing: run npm install in examples/browser"),
  );
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  const graph = await (await download(address)).arrayBuffer();
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] }).catch(error => {
    throw new Problem(`${address} is no graph that onnxruntime-web takes: ${error.message.split("\n")[0]}`);
  });
  const missing = ["logits", "gradient"].filter(name => !session.outputNames.includes(name));
  if (missing.length) throw new Problem(`${address} lacks ${missing.join(" and ")}: see sad-deploy gradient`);
  const [{ name, type, shape }, further] = session.inputMetadata;
  if (further) throw new Problem(`${address} also takes ${further.name}: --of largest and --of N do without`);
  const [batch, channels, height, width] = shape;
  const fits = shape.length === 4 && !(batch > 1) && [1, 3].includes(channels) && height > 0 && width > 0;
  if (type !== "float32" || !fits) {
    throw new Problem(`${address} takes ${type} (${shape.join(", ")}), not float32 (N, 1 or 3, height, width)`);
  }
  const [mean, std] = ["mean", "std"].map(key => settings[key].split(",").map(Number));
  const lengths = [mean, std].every(each => [1, channels].includes(each.length));
  if (!lengths || ![...mean, ...std].every(Number.isFinite) || Math.min(...std) <= 0) {
    throw new Problem(`mean=${mean} and std=${std}: one number or ${channels} each, and std positive`);
  }
  const tensor = values => new ort.Tensor("float32", values, [1, channels, height, width]);
  return { session, tensor, name, channels, height, width, mean, std };
}

const luma = (data, i) => 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];

/** The middle of a photo, in the network's size and color. */
async function read(blob, title, { channels, height, width }) {
  const photo = await createImageBitmap(blob).catch(problem(`${title} is not an image that this browser reads`));
  const scale = Math.min(photo.width / width, photo.height / height);
  const [w, h] = [width * scale, height * scale];
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(photo, (photo.width - w) / 2, (photo.height - h) / 2, w, h, 0, 0, width, height);
  const picture = context.getImageData(0, 0, width, height);
  if (channels === 1) {
    for (let i = 0; i < height * width; i++) picture.data.fill(luma(picture.data, i), 4 * i, 4 * i + 3);
  }
  return picture;
}

/** (C, H, W) from RGBA bytes. */
function normalised({ data }, { channels, height, width, mean, std }) {
  const size = height * width;
  return Float32Array.from({ length: channels * size }, (_, at) => {
    const c = Math.floor(at / size);
    return (data[4 * (at % size) + c] / 255 - mean[c % mean.length]) / std[c % std.length];
  });
}

/** The photo in dark grey, and over it |S| summed over the channels; its 99th percentile is the full color. */
function overlay({ data, width, height }, gradient) {
  const size = height * width;
  const sums = new Float32Array(size);
  gradient.forEach((value, at) => (sums[at % size] += Math.abs(value)));
  const most = Float32Array.from(sums).sort()[Math.floor(0.99 * (size - 1))] || 1;
  const mixed = new ImageData(width, height);
  sums.forEach((sum, i) => {
    const [share, grey] = [Math.min(sum / most, 1), 0.6 * luma(data, i)];
    mixed.data.set([...HEAT.map(full => grey + share * (full - grey)), 255], 4 * i);
  });
  return mixed;
}

function draw(id, picture) {
  const canvas = Object.assign(element(id), { width: picture.width, height: picture.height });
  canvas.style.imageRendering = picture.width < 128 ? "pixelated" : "auto";
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

async function show(model, blob, title) {
  const picture = await read(blob, title, model);
  const feeds = { [model.name]: model.tensor(normalised(picture, model)) };
  const start = performance.now();
  const { logits, gradient } = await model.session.run(feeds);
  const milliseconds = performance.now() - start;
  const label = logits.data.reduce((best, value, i, all) => (value > all[best] ? i : best), 0);
  draw("image", picture);
  draw("map", overlay(picture, gradient.data));
  element("label").textContent = label;
  element("logit").textContent = logits.data[label].toPrecision(4);
  element("time").textContent = `${milliseconds.toFixed(0)} ms`;
  window.result = { logits: logits.data, gradient: gradient.data, label, milliseconds }; // for the console
}

/** Run a step and say how it goes: data-state of the page is busy, then done or error. */
async function attempt(text, step) {
  const say = (state, line) => {
    document.body.dataset.state = state;
    element("status").textContent = line;
  };
  say("busy", text);
  await new Promise(resolve => setTimeout(resolve, 20)); // the line is painted before the page is busy
  try {
    const line = await step();
    say("done", line);
    return true;
  } catch (error) {
    say("error", error.message);
    if (!(error instanceof Problem)) console.error(error);
    return false;
  }
}

async function pick(model, title, open) {
  element("photo").disabled = true;
  const shown = await attempt(`Running on ${title} …`, async () => {
    await show(model, await open(), title);
    return `Shown: ${title}`;
  });
  element("result").hidden = !shown;
  element("photo").disabled = false;
}

let model;
const loaded = await attempt(`Loading ${settings.model} …`, async () => {
  model = await load(settings.model);
  return `${settings.model} is loaded: choose a photo.`;
});
if (loaded) {
  element("photo").disabled = false;
  element("photo").addEventListener("change", ({ target: { files } }) => {
    if (files.length) pick(model, files[0].name, async () => files[0]);
  });
  if (settings.image) await pick(model, settings.image, () => download(settings.image));
}
