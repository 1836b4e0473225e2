// Waves of a picture: the discrete Fourier transform, bands of frequency, and pictures of both.
// A picture is {h, w, planes}: one Float32Array of h*w numbers in [-1,1] for each colour.
// The Python twin of this file is nfig.bands.frequency; tests hold the two together.

// ---- The transform -------------------------------------------------------------------------------

const plans = new Map()

// What a transform of length n needs: its roots of unity, and for powers of two the order of the input
function plan(n) {
  if (plans.has(n)) return plans.get(n)
  const cos = new Float64Array(n)
  const sin = new Float64Array(n)
  for (let k = 0; k < n; k++) {
    cos[k] = Math.cos(2 * Math.PI * k / n)
    sin[k] = -Math.sin(2 * Math.PI * k / n)
  }
  const fast = (n & (n - 1)) === 0
  const order = new Uint32Array(fast ? n : 0)
  for (let i = 1; i < order.length; i++) order[i] = (order[i >> 1] >> 1) | (i & 1 ? n >> 1 : 0)
  plans.set(n, {n, cos, sin, fast, order})
  return plans.get(n)
}

// One line of n complex numbers, in place: Cooley and Tukey's way for powers of two
function transformFast(re, im, p) {
  for (let i = 0; i < p.n; i++) {
    const j = p.order[i]
    if (j <= i) continue
    const a = re[i]
    const b = im[i]
    re[i] = re[j]; im[i] = im[j]
    re[j] = a; im[j] = b
  }
  for (let half = 1; half < p.n; half *= 2) {
    const stride = p.n / (2 * half)
    for (let start = 0; start < p.n; start += 2 * half) {
      for (let k = 0; k < half; k++) {
        const c = p.cos[k * stride]
        const s = p.sin[k * stride]
        const i = start + k
        const j = i + half
        const x = re[j] * c - im[j] * s
        const y = re[j] * s + im[j] * c
        re[j] = re[i] - x; im[j] = im[i] - y
        re[i] += x; im[i] += y
      }
    }
  }
}

// The definition, for the few lengths that are no power of two (latents of 13, pictures of 96)
function transformPlain(re, im, p) {
  const outRe = new Float64Array(p.n)
  const outIm = new Float64Array(p.n)
  for (let k = 0; k < p.n; k++) {
    let x = 0
    let y = 0
    for (let i = 0, turn = 0; i < p.n; i++, turn = (turn + k) % p.n) {
      x += re[i] * p.cos[turn] - im[i] * p.sin[turn]
      y += re[i] * p.sin[turn] + im[i] * p.cos[turn]
    }
    outRe[k] = x
    outIm[k] = y
  }
  re.set(outRe)
  im.set(outIm)
}

// The plane, in place: all rows, then all columns. Swapping the two parts makes it the inverse (without 1/hw)
export function fft2(re, im, h, w) {
  const rows = plan(w)
  const columns = plan(h)
  const acrossLine = rows.fast ? transformFast : transformPlain
  const downLine = columns.fast ? transformFast : transformPlain
  for (let y = 0; y < h; y++) {
    acrossLine(re.subarray(y * w, (y + 1) * w), im.subarray(y * w, (y + 1) * w), rows)
  }
  const lineRe = new Float64Array(h)
  const lineIm = new Float64Array(h)
  for (let x = 0; x < w; x++) {
    for (let y = 0; y < h; y++) {
      lineRe[y] = re[y * w + x]
      lineIm[y] = im[y * w + x]
    }
    downLine(lineRe, lineIm, columns)
    for (let y = 0; y < h; y++) {
      re[y * w + x] = lineRe[y]
      im[y * w + x] = lineIm[y]
    }
  }
}

// The spectrum of every colour of a picture: [{re, im}], the mean first, as numpy.fft.fft2 lays it out
export function spectra(picture) {
  const {h, w, planes} = picture
  return planes.map(plane => {
    const re = new Float64Array(plane)
    const im = new Float64Array(h * w)
    fft2(re, im, h, w)
    return {re, im}
  })
}

// Two weights a wave, two pictures out. Both fit into one transform, the second as its imaginary part
export function filterTwice(spectrum, first, second, h, w) {
  const n = h * w
  const re = new Float64Array(n)
  const im = new Float64Array(n)
  for (let k = 0; k < n; k++) {
    if (first[k]) {
      re[k] = spectrum.re[k]
      im[k] = spectrum.im[k]
    }
    if (second[k]) {
      re[k] -= spectrum.im[k]
      im[k] += spectrum.re[k]
    }
  }
  fft2(im, re, h, w)                                    // swapped: the inverse
  const out = [new Float32Array(n), new Float32Array(n)]
  for (let k = 0; k < n; k++) {
    out[0][k] = re[k] / n
    out[1][k] = im[k] / n
  }
  return out
}

// ---- Bands (Eqs. 1 and 7) ------------------------------------------------------------------------

// Signed cycles per side of each line of a spectrum
export function cycles(n, side = n) {
  return Array.from({length: n}, (_, k) => (k < n / 2 ? k : k - n) * side / n)
}

// Radius of every wave, and the larger of its two directions, both in cycles per longer side
function radii(h, w) {
  const side = Math.max(h, w)
  const down = cycles(h, side)
  const across = cycles(w, side)
  const round = new Float64Array(h * w)
  const square = new Float64Array(h * w)
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      round[y * w + x] = Math.sqrt(down[y] * down[y] + across[x] * across[x])
      square[y * w + x] = Math.max(Math.abs(down[y]), Math.abs(across[x]))
    }
  }
  return {round, square}
}

const cumulative = values => {
  let sum = 0
  return values.map(v => sum += v)
}

// Upper edge of every band. `power` is needed for 'energy' only
export function bandEdges(scales, h, w, division, power) {
  const {round} = radii(h, w)
  const top = round.reduce((a, b) => Math.max(a, b), 0)
  const squares = scales.map(s => s * s)
  const total = squares.reduce((a, b) => a + b)
  const share = cumulative(squares).map(v => v / total)
  if (division === 'paper') return share.map(v => top * v)
  if (division === 'area') return share.map(v => top * Math.sqrt(v))
  if (division === 'nyquist') return [...scales.slice(0, -1).map(s => s / 2), top]
  if (division !== 'energy') throw new Error(`unknown division ${division}: choose paper, area, nyquist or energy`)
  const order = Array.from(round.keys()).sort((a, b) => round[a] - round[b])
  const rising = cumulative(order.map((k, i) => i ? power[k] : 0))
  const all = rising[rising.length - 1]
  const edges = share.map(v => round[order[Math.max(0, rising.findIndex(r => r >= v * all))]] + 1e-6)
  edges[edges.length - 1] = top
  return edges
}

// Which band every wave belongs to, counted from 0; each wave is in exactly one
export function bandOf(scales, h, w, division, power) {
  const edges = bandEdges(scales, h, w, division, power)
  const {round, square} = radii(h, w)
  const last = scales.length - 1
  const out = new Uint8Array(h * w)                      // the mean is in the first band whatever its edge
  for (let k = 1; k < out.length; k++) {
    let i = 0
    while (i < last && !(division === 'nyquist' ? square[k] < edges[i] : round[k] <= edges[i] * (1 + 1e-9))) i++
    out[k] = i
  }
  return out
}

// Mean power of every wave over the colours; sums to the mean square of the picture
export function power(spectrum, h, w) {
  const out = new Float64Array(h * w)
  const scale = 1 / (h * w) ** 2 / spectrum.length
  for (const {re, im} of spectrum) {
    for (let k = 0; k < out.length; k++) out[k] += (re[k] * re[k] + im[k] * im[k]) * scale
  }
  return out
}

// Tokens, waves and share of the energy (the mean left out) of each band
export function perBand(scales, bands, powers) {
  const waves = scales.map(() => 0)
  const energy = scales.map(() => 0)
  for (let k = 0; k < bands.length; k++) {
    waves[bands[k]] += 1
    if (k) energy[bands[k]] += powers[k]
  }
  const total = Math.max(energy.reduce((a, b) => a + b), 1e-12)
  return {tokens: scales.map(s => s * s), waves, energy: energy.map(e => e / total)}
}

// One wave alone: what the click in a spectrum shows. Its mirror image belongs to it
export function oneWave(picture, spectrum, y, x) {
  const {h, w} = picture
  const k = y * w + x
  const own = (2 * y) % h === 0 && (2 * x) % w === 0     // it is its own mirror image
  const gain = (own ? 1 : 2) / (h * w)
  const planes = spectrum.map(({re, im}) => {
    const plane = new Float32Array(h * w)
    for (let r = 0; r < h; r++) {
      for (let c = 0; c < w; c++) {
        const turn = 2 * Math.PI * ((y * r % h) / h + (x * c % w) / w)
        plane[r * w + c] = gain * (re[k] * Math.cos(turn) - im[k] * Math.sin(turn))
      }
    }
    return plane
  })
  return {h, w, planes}
}

// ---- Pictures ------------------------------------------------------------------------------------

// The largest value at 1, zero stays zero; the factor of an empty picture is 0
export function stretch(picture) {
  let top = 0
  for (const plane of picture.planes) {
    for (let k = 0; k < plane.length; k++) top = Math.max(top, Math.abs(plane[k]))
  }
  const factor = top < 1e-6 ? 0 : 1 / top
  const planes = picture.planes.map(plane => {
    const out = new Float32Array(plane.length)
    for (let k = 0; k < out.length; k++) out[k] = plane[k] * factor
    return out
  })
  return [{...picture, planes}, factor]
}

export function add(a, b, sign = 1) {
  const planes = a.planes.map((plane, c) => {
    const other = b.planes[c]
    const out = new Float32Array(plane.length)
    for (let k = 0; k < out.length; k++) out[k] = plane[k] + sign * other[k]
    return out
  })
  return {...a, planes}
}

export function psnr(a, b) {
  let sum = 0
  a.planes.forEach((p, c) => p.forEach((v, k) => { sum += (v - b.planes[c][k]) ** 2 }))
  const mean = Math.max(sum / (a.planes.length * a.h * a.w), 1e-12)
  return 10 * Math.log10(4 / mean)
}

const viridis = [[68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
                 [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37]]

// A number between 0 and 1 as a colour that grows evenly in brightness
export function heat(t) {
  const at = Math.min(Math.max(t, 0), 1) * (viridis.length - 1)
  const i = Math.min(Math.floor(at), viridis.length - 2)
  return viridis[i].map((v, c) => v + (at - i) * (viridis[i + 1][c] - v))
}

const logPower = v => Math.log10(Math.max(v, 1e-12))

const shades = Uint8ClampedArray.from({length: 3 * 256}, (_, k) => heat(Math.floor(k / 3) / 255)[k % 3])

// The span of colours for a spectrum: from its darkest fiftieth to its brightest wave
export function span(powers) {
  const sorted = Float64Array.from(powers).sort()
  return [logPower(sorted[Math.floor(.02 * (sorted.length - 1))]), logPower(sorted[sorted.length - 1])]
}

// Brightness of every wave on a span, 0 to 255: what `spectrumPixels` paints
export function levels(powers, [low, high]) {
  const out = new Uint8ClampedArray(powers.length)
  const scale = 255 / Math.max(high - low, 1e-9)
  for (let k = 0; k < out.length; k++) out[k] = (logPower(powers[k]) - low) * scale
  return out
}

// RGBA pixels of a spectrum, low frequencies in the middle; waves outside of `lit`, if there is one, are dim
export function spectrumPixels(level, h, w, lit = null) {
  const out = new Uint8ClampedArray(4 * h * w)
  for (let y = 0; y < h; y++) {
    const row = (y + (h >> 1)) % h
    for (let x = 0; x < w; x++) {
      const k = y * w + x
      const at = 4 * (row * w + (x + (w >> 1)) % w)
      const shade = 3 * level[k]
      const dim = !lit || lit[k] ? 1 : .3
      for (let c = 0; c < 3; c++) out[at + c] = dim * shades[shade + c]
      out[at + 3] = 255
    }
  }
  return out
}

// RGBA pixels of a picture: clipped, not rescaled
export function pixels({h, w, planes}) {
  const out = new Uint8ClampedArray(4 * h * w)
  for (let k = 0; k < h * w; k++) {
    for (let c = 0; c < 3; c++) out[4 * k + c] = (planes[planes.length > 1 ? c : 0][k] + 1) * 127.5
    out[4 * k + 3] = 255
  }
  return out
}

// The picture in RGBA pixels, as numbers in [-1,1]
export function fromPixels(data, h, w) {
  const planes = [0, 1, 2].map(c => Float32Array.from({length: h * w}, (_, k) => data[4 * k + c] / 127.5 - 1))
  return {h, w, planes}
}
