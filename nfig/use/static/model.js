// A trained model in the page: its networks run on onnxruntime-web, its quantiser and the drawing of tokens below.
// `source.file(path)` gives the bytes of a file, wherever they come from. The Python twins are nfig.tokenizer.quantizer
// and nfig.transformer.sampling; tests hold that the same seed gives the same tokens.
import {fft2} from './fourier.js'

// ---- Files ---------------------------------------------------------------------------------------

const text = bytes => new TextDecoder().decode(bytes)

export async function json(source, path) {
  return JSON.parse(text(await source.file(path)))
}

// The tensors of a safetensors file: name -> {shape, data}
export function readSafetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const start = 8 + Number(view.getBigUint64(0, true))
  const header = JSON.parse(text(bytes.subarray(8, start)))
  const kinds = {F32: Float32Array, U8: Uint8Array}
  const tensors = {}
  for (const [name, {dtype, shape, data_offsets: [a, b]}] of Object.entries(header)) {
    if (name === '__metadata__') continue
    tensors[name] = {shape, data: new kinds[dtype](bytes.slice(start + a, start + b).buffer)}
  }
  return tensors
}

// ---- The runtime ---------------------------------------------------------------------------------

let runtime = null

// onnxruntime-web, started once for all models of a page
export function startRuntime(source) {
  runtime ??= (async () => {
    const [code, wasm] = await Promise.all(['ort.mjs', 'ort.wasm'].map(f => source.file(`runtime/${f}`)))
    const url = URL.createObjectURL(new Blob([code], {type: 'text/javascript'}))
    const ort = await import(url)
    URL.revokeObjectURL(url)
    ort.env.wasm.numThreads = 1
    ort.env.wasm.wasmBinary = wasm.buffer.slice(wasm.byteOffset, wasm.byteOffset + wasm.byteLength)
    ort.env.logLevel = 'error'
    return ort
  })()
  runtime.catch(() => { runtime = null })                // a failed start may be tried again
  return runtime
}

// ---- The quantiser -------------------------------------------------------------------------------

// A x B^T style products of small row-major matrices: (a,n) times (b,n) transposed
function timesTransposed(left, right, a, n, b) {
  const out = new Float32Array(a * b)
  for (let i = 0; i < a; i++) {
    for (let j = 0; j < b; j++) {
      let sum = 0
      for (let k = 0; k < n; k++) sum += left[i * n + k] * right[j * n + k]
      out[i * b + j] = sum
    }
  }
  return out
}

// Every channel from side `from` to side `to`: M x M^T with M of shape (to, from)
function resample(matrix, x, channels, from, to) {
  const out = new Float32Array(channels * to * to)
  for (let c = 0; c < channels; c++) {
    const plane = x.subarray(c * from * from, (c + 1) * from * from)
    const half = timesTransposed(plane, matrix, from, from, to)          // (from,to): columns done
    for (let i = 0; i < to; i++) {
      for (let j = 0; j < to; j++) {
        let sum = 0
        for (let k = 0; k < from; k++) sum += matrix[i * from + k] * half[k * to + j]
        out[(c * to + i) * to + j] = sum
      }
    }
  }
  return out
}

// A 3x3 convolution over (channels, side, side)
function convolve(x, {weight, bias}, channels, side) {
  const out = new Float32Array(x.length)
  const area = side * side
  for (let o = 0; o < channels; o++) {
    const target = out.subarray(o * area, (o + 1) * area).fill(bias[o])
    for (let c = 0; c < channels; c++) {
      for (let ky = 0; ky < 3; ky++) {
        for (let kx = 0; kx < 3; kx++) {
          const factor = weight[((o * channels + c) * 3 + ky) * 3 + kx]
          const y0 = Math.max(0, 1 - ky)
          const y1 = Math.min(side, side + 1 - ky)
          const x0 = Math.max(0, 1 - kx)
          const x1 = Math.min(side, side + 1 - kx)
          for (let y = y0; y < y1; y++) {
            const row = c * area + (y + ky - 1) * side + kx - 1
            for (let k = x0; k < x1; k++) target[y * side + k] += factor * x[row + k]
          }
        }
      }
    }
  }
  return out
}

export class Quantizer {
  constructor(tensors, {scales, codebook_size, latent_dim, metric}, phiOf) {
    this.tensors = tensors
    this.scales = scales
    this.side = scales[scales.length - 1]
    this.size = codebook_size
    this.dim = latent_dim
    this.phiOf = phiOf
    this.codebook = tensors.codebook.data
    this.gain = tensors.gain.data
    this.looked = this.codebook                          // what is compared: codes, or their directions
    const squares = Float32Array.from({length: this.size}, (_, t) => this.code(t).reduce((sum, v) => sum + v * v, 0))
    this.lengths = squares
    if (metric === 'cosine') {
      this.looked = this.codebook.map((v, k) => v / Math.max(Math.sqrt(squares[Math.floor(k / this.dim)]), 1e-12))
      this.lengths = new Float32Array(this.size)
    }
  }

  code(t) { return this.codebook.subarray(t * this.dim, (t + 1) * this.dim) }

  matrix(kind, i) { return this.tensors[`${kind}.${i}`].data }

  empty() { return new Float32Array(this.dim * this.side * this.side) }

  // What the tokens of stage i add to the running sum
  upsample(i, tokens) {
    const s = this.scales[i]
    const grid = new Float32Array(this.dim * s * s)
    tokens.forEach((t, p) => {
      for (let c = 0; c < this.dim; c++) grid[c * s * s + p] = this.codebook[t * this.dim + c] * this.gain[i]
    })
    const x = s === this.side ? grid : resample(this.matrix('up', i), grid, this.dim, s, this.side)
    if (!this.phiOf) return x
    const phi = `phi.${this.phiOf[i]}`
    const kernel = {weight: this.tensors[`${phi}.weight`].data, bias: this.tensors[`${phi}.bias`].data}
    return convolve(x, kernel, this.dim, this.side)
  }

  // (C,h,h) brought to the grid of stage i, a row of C numbers a token
  rows(kind, i, x) {
    const s = this.scales[i]
    const grid = s === this.side ? x : resample(this.matrix(kind, i), x, this.dim, this.side, s)
    const out = new Float32Array(grid.length)
    for (let c = 0; c < this.dim; c++) for (let p = 0; p < s * s; p++) out[p * this.dim + c] = grid[c * s * s + p]
    return out
  }

  // What the transformer reads to predict stage i
  nextInput(i, fHat) { return this.rows('pool', i, fHat) }

  // The code nearest to each row (Eq. 5)
  nearest(rows, gain) {
    const {dim, size, looked, lengths} = this
    const found = new Int32Array(rows.length / dim)
    for (let p = 0; p < found.length; p++) {
      let least = Infinity
      for (let t = 0; t < size; t++) {
        let dot = 0
        for (let c = 0; c < dim; c++) dot += rows[p * dim + c] * looked[t * dim + c]
        const distance = lengths[t] - 2 * dot / gain
        if (distance < least) {
          least = distance
          found[p] = t
        }
      }
    }
    return found
  }

  // What each stage aims at: bands 1..i of the latent (NFIG), or all of it (VAR)
  targets(latent, target) {
    const {side, dim} = this
    const area = side * side
    const low = this.tensors.low
    if (target === 'full' || !low) return this.scales.map(() => latent)
    const half = (side >> 1) + 1
    const spectra = Array.from({length: dim}, (_, c) => {
      const re = Float64Array.from(latent.subarray(c * area, (c + 1) * area))
      const im = new Float64Array(area)
      fft2(re, im, side, side)
      return {re, im}
    })
    return this.scales.map((_, i) => {
      if (i === this.scales.length - 1) return latent
      const out = this.empty()
      for (let c = 0; c < dim; c++) {
        const re = new Float64Array(area)
        const im = new Float64Array(area)
        for (let y = 0; y < side; y++) {
          for (let x = 0; x < side; x++) {
            const mirrored = x >= half                    // rfft keeps half of the plane
            const u = mirrored ? (side - y) % side : y
            const v = mirrored ? side - x : x
            if (!low.data[(i * side + u) * half + v]) continue
            re[y * side + x] = spectra[c].re[y * side + x]
            im[y * side + x] = spectra[c].im[y * side + x]
          }
        }
        fft2(im, re, side, side)
        for (let k = 0; k < area; k++) out[c * area + k] = re[k] / area
      }
      return out
    })
  }

  // The stage loop: `pick(i, fHat)` gives the tokens of a stage
  stages(pick) {
    const done = []
    let fHat = this.empty()
    this.scales.forEach((_, i) => {
      const tokens = pick(i, fHat)
      const more = this.upsample(i, tokens)
      fHat = fHat.map((v, k) => v + more[k])
      done.push({tokens, fHat})
    })
    return done
  }

  encode(latent, target) {
    const aims = this.targets(latent, target)
    return this.stages((i, fHat) =>
      this.nearest(this.rows('down', i, aims[i].map((v, k) => v - fHat[k])), this.gain[i]))
  }

  // Red, green and blue of a code: codes that lie close together look alike
  colour(token) {
    return [0, 1, 2].map(c => 255 * Math.min(1, Math.max(0, .5 + this.tensors.colours.data[3 * token + c])))
  }
}

// ---- Drawing tokens ------------------------------------------------------------------------------

// The numbers in [0,1) that torch.rand gives after manual_seed: a Mersenne Twister, 24 bits of each of its words
export function uniforms(seed, length) {
  const state = new Uint32Array(624)
  state[0] = seed >>> 0
  for (let j = 1; j < 624; j++) {
    const before = state[j - 1] ^ (state[j - 1] >>> 30)
    state[j] = Math.imul(1812433253, before) + j
  }
  let next = 624
  const word = () => {
    if (next === 624) {
      for (let k = 0; k < 624; k++) {
        const y = (state[k] & 0x80000000) | (state[(k + 1) % 624] & 0x7fffffff)
        state[k] = state[(k + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0)
      }
      next = 0
    }
    let y = state[next++]
    y ^= y >>> 11
    y ^= (y << 7) & 0x9d2c5680
    y ^= (y << 15) & 0xefc60000
    return (y ^ (y >>> 18)) >>> 0
  }
  return Float32Array.from({length}, () => (word() & 0xffffff) / 0x1000000)
}

const schedules = {ramp: x => x, constant: () => 1, coarse: x => x < .8 ? x : 0}

// How strongly each of n stages is guided
export function guidanceWeights({weights, cfg_scale, schedule}, n) {
  if (weights && weights.length) return weights
  return Array.from({length: n}, (_, i) => n > 1 ? cfg_scale * schedules[schedule](i / (n - 1)) : cfg_scale)
}

// Probabilities of the codes at one place: temperature, then top-k, then top-p
export function probabilities(logits, {temperature, top_k, top_p}) {
  const scaled = logits.map(v => v / temperature)
  const most = scaled.reduce((a, b) => Math.max(a, b), -Infinity)
  const weights = Float64Array.from(scaled, v => Math.exp(v - most))
  const cutBelow = least => scaled.forEach((v, t) => { if (v < least) weights[t] = 0 })
  const sorted = () => Float32Array.from(scaled).sort().reverse()
  if (top_k > 0 && top_k < scaled.length) cutBelow(sorted()[top_k - 1])
  if (top_p > 0 && top_p < 1) {
    const total = weights.reduce((a, b) => a + b)
    let before = 0
    let least = most
    for (const v of sorted()) {
      if (before >= top_p) break
      least = v
      before += Math.exp(v - most) / total
    }
    cutBelow(least)
  }
  const total = weights.reduce((a, b) => a + b)
  return weights.map(v => v / total)
}

// The first code at which the cumulative distribution exceeds u
export function draw(p, u) {
  let sum = 0
  let last = 0
  for (let t = 0; t < p.length; t++) {
    if (!p[t]) continue
    sum += p[t]
    last = t
    if (sum > u) return t
  }
  return last
}

// ---- Models --------------------------------------------------------------------------------------

const opened = new Map()

// A model by name; its files are fetched when they are first needed
export function openModel(source, name) {
  if (!opened.has(name)) {
    const opening = (async () => {
      const manifest = await json(source, `models/${name}/manifest.json`)
      const tensors = readSafetensors(await source.file(`models/${name}/quantizer.safetensors`))
      return new Model(source, name, manifest, tensors)
    })()
    opening.catch(() => opened.delete(name))
    opened.set(name, opening)
  }
  return opened.get(name)
}

class Model {
  constructor(source, name, manifest, tensors) {
    Object.assign(this, {source, name, manifest, sessions: {}})
    this.classes = manifest.classes
    this.side = manifest.tokenizer.image_size
    this.quantizer = new Quantizer(tensors, manifest.tokenizer, manifest.phi_of)
  }

  // The session of 'encoder', 'decoder' or 'transformer'
  session(part) {
    this.sessions[part] ??= (async () => {
      const ort = await startRuntime(this.source)
      const bytes = await this.source.file(`models/${this.name}/${part}.onnx`)
      return {ort, session: await ort.InferenceSession.create(bytes, {executionProviders: ['wasm']})}
    })()
    this.sessions[part].catch(() => { delete this.sessions[part] })
    return this.sessions[part]
  }

  async run(part, feeds) {
    const {ort, session} = await this.session(part)
    const tensors = {}
    for (const [name, [kind, data, shape]] of Object.entries(feeds)) tensors[name] = new ort.Tensor(kind, data, shape)
    return session.run(tensors)
  }

  // The picture of a running sum
  async decode(fHat) {
    const {quantizer: q, side} = this
    const {images} = await this.run('decoder', {f_hat: ['float32', fHat, [1, q.dim, q.side, q.side]]})
    const area = side * side
    return {h: side, w: side, planes: [0, 1, 2].map(c => images.data.slice(c * area, (c + 1) * area))}
  }

  // The latent of a picture
  async latent(picture) {
    const {side} = this
    const flat = new Float32Array(3 * side * side)
    for (let c = 0; c < 3; c++) flat.set(picture.planes[c % picture.planes.length], c * side * side)
    const {latent} = await this.run('encoder', {images: ['float32', flat, [1, 3, side, side]]})
    return latent.data
  }

  // One pass of the transformer over the tokens of stage i: [logits with class, logits without], and its memory
  async step(i, labels, input, past) {
    const {depth, heads, width, latent_dim: dim, codebook_size: codes} = this.manifest.transformer
    const sizes = this.quantizer.scales.map(s => s * s)
    const first = sizes.slice(0, i).reduce((a, b) => a + b, 0)
    const [m, B] = [sizes[i], labels.length]
    const remembered = past ? past.length / (2 * depth * B * width) : 0  // all tokens before, or less (`sees`)
    const rows = new Float32Array(B * m * dim)
    if (input) for (let b = 0; b < B; b++) rows.set(input, b * m * dim)
    const places = BigInt64Array.from({length: m}, (_, k) => BigInt(first + k))
    const {logits, present} = await this.run('transformer', {
      labels: ['int64', BigInt64Array.from(labels, BigInt), [B]],
      inputs: ['float32', rows, [B, m, dim]],
      places: ['int64', places, [m]],
      past: ['float32', past ?? new Float32Array(0), [depth, 2, B, heads, remembered, width / heads]],
    })
    const each = m * codes
    return {logits: labels.map((_, b) => logits.data.subarray(b * each, (b + 1) * each)), past: present.data}
  }
}

// An image that grows: what there is after each stage, and what is needed to go on from any of them
export class Growth {
  constructor(model, label, seed, sample) {
    const {order, classes} = model.manifest.transformer
    if (order !== 'stages') throw new Error('this model predicts token by token; the page draws stage by stage')
    Object.assign(this, {model, label, seed, sample, stages: []})
    this.weights = guidanceWeights(sample, model.quantizer.scales.length)
    this.labels = this.weights.some(Boolean) ? [label, classes] : [label]
  }

  // Compute stages from `start` on; `kept[i]` are tokens that are not drawn. `onStage` may be async, and ends it with false
  async grow(start = 0, kept = {}, onStage = () => {}) {
    const {model, sample, weights, labels} = this
    const q = model.quantizer
    const sizes = q.scales.map(s => s * s)
    const u = uniforms(this.seed, sizes.reduce((a, b) => a + b))
    this.stages.length = start
    for (let i = start; i < sizes.length; i++) {
      const before = this.stages[i - 1]
      const {logits: [withClass, without], past} =
        await model.step(i, labels, before && q.nextInput(i, before.fHat), before && before.past)
      const guided = without ? withClass.map((v, k) => v + weights[i] * (v - without[k])) : withClass
      const first = sizes.slice(0, i).reduce((a, b) => a + b, 0)
      const tokens = kept[i] ?? Int32Array.from({length: sizes[i]}, (_, p) => this.choose(guided, p, u[first + p]))
      const more = q.upsample(i, tokens)
      const fHat = before ? before.fHat.map((v, k) => v + more[k]) : more
      this.stages.push({tokens, fHat, past, logits: guided})
      if (await onStage(i) === false) return false
    }
    return true
  }

  // Logits of the codes at place p of a stage
  at(logits, p) {
    const codes = this.model.quantizer.size
    return logits.subarray(p * codes, (p + 1) * codes)
  }

  choose(logits, p, u) {
    const row = this.at(logits, p)
    if (this.sample.top_k === 1) return row.indexOf(row.reduce((a, b) => Math.max(a, b), -Infinity))
    return draw(probabilities(row, this.sample), u)
  }

  // The likeliest codes at a place: [{token, p}], best first
  likeliest(i, place, count = 8) {
    const p = probabilities(this.at(this.stages[i].logits, place), this.sample)
    return Array.from(p.keys()).sort((a, b) => p[b] - p[a]).slice(0, count).map(token => ({token, p: p[token]}))
  }
}
