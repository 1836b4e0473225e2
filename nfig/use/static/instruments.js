// Four instruments to play with: Bands, Grow, Tokenize, Mix. Each is a function of an element and a source of files;
// where the files come from (a web server, a Python kernel) is not its business: see page.js and widget.js.
import {add, bandOf, filterTwice, fromPixels, levels, oneWave, perBand, pixels, power, psnr, span, spectra,
        spectrumPixels, stretch} from './fourier.js'
import {Growth, json, openModel} from './model.js'

// ---- Small tools ---------------------------------------------------------------------------------

// An element with attributes, listeners (on...) and children
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value)
    else if (value === true) node.setAttribute(name, '')
    else if (value !== false && value != null) node.setAttribute(name, value)
  }
  node.append(...children.filter(c => c != null))
  // Keys pressed here are meant for this element: JupyterLab shall not take them for its shortcuts
  if (node.tabIndex >= 0) node.setAttribute('data-lm-suppress-shortcuts', 'true')
  return node
}

const percent = p => p >= .995 ? '100 %' : p >= .1 ? `${Math.round(100 * p)} %` : p >= .001 ? `${(100 * p).toFixed(1)} %` : '< 0.1 %'
const count = n => n.toLocaleString('en')
const plural = (n, what) => `${count(n)} ${what}${n === 1 ? '' : 's'}`
const breathe = () => new Promise(done => setTimeout(done))

let ids = 0

// A slider under its name and value: {node, value, set(value), range(min, max)}
function slider({name, min, max, step = 1, value, show = String, on}) {
  const id = `nfig-${ids++}`
  const input = el('input', {type: 'range', id, min, max, step, value})
  const output = el('output', {for: id})
  const write = () => {
    output.textContent = show(Number(input.value))
    input.setAttribute('aria-valuetext', output.textContent)
  }
  input.addEventListener('input', () => {
    write()
    on(Number(input.value))
  })
  write()
  return {
    node: el('div', {class: 'nfig-control'}, el('label', {for: id}, name, ' ', output), input),
    input,
    get value() { return Number(input.value) },
    set(v) {
      input.value = v
      write()
    },
    range(low, high) {
      input.min = low
      input.max = high
      write()
    },
  }
}

function select({name, options, value, on}) {
  const id = `nfig-${ids++}`
  const input = el('select', {id, onchange: () => on(input.value)})
  const fill = list => input.replaceChildren(...list.map(([v, label]) => el('option', {value: v}, label)))
  fill(options)
  if (value != null) input.value = value
  return {
    node: el('div', {class: 'nfig-control nfig-select'}, el('label', {for: id}, name), input),
    input,
    fill,
    get value() { return input.value },
    set(v) { input.value = v },
  }
}

const button = (label, on, attributes = {}) => el('button', {type: 'button', onclick: on, ...attributes}, label)

// A canvas with a caption: show(rgba, h, w, caption, what a listener hears)
function panel(name, attributes = {}) {
  const canvas = el('canvas', {role: 'img', 'aria-label': name, ...attributes})
  const caption = el('figcaption', {}, name)
  return {
    node: el('figure', {class: 'nfig-panel'}, canvas, caption),
    canvas,
    show(rgba, h, w, said, alternative = said) {
      if (canvas.width !== w || canvas.height !== h) {
        canvas.width = w
        canvas.height = h
        canvas.classList.toggle('nfig-crisp', h <= 64)
      }
      canvas.getContext('2d').putImageData(new ImageData(rgba, w, h), 0, 0)
      caption.textContent = said
      canvas.setAttribute('aria-label', alternative)
    },
    picture(picture, said, alternative) { this.show(pixels(picture), picture.h, picture.w, said, alternative) },
    spectrum(level, h, w, said, alternative, lit) {
      this.show(spectrumPixels(level, h, w, lit), h, w, said, alternative)
    },
  }
}

// Play, pause and reset over a slider: one step every `pause` milliseconds
function transport({steps, on, reset, pause = 650}) {
  let timer = null
  const stop = () => {
    clearInterval(timer)
    timer = null
    play.textContent = '▶ Play'
    play.setAttribute('aria-pressed', 'false')
  }
  const start = () => {
    const all = steps()
    let k = 0
    play.textContent = '❚❚ Pause'
    play.setAttribute('aria-pressed', 'true')
    on(all[k++])
    timer = setInterval(() => k < all.length ? on(all[k++]) : stop(), pause)
  }
  const play = button('▶ Play', () => timer ? stop() : start(), {class: 'nfig-play', 'aria-pressed': 'false'})
  const again = button('Reset', () => {
    stop()
    reset()
  })
  return {nodes: [play, again], stop}
}

// The card of an instrument: title, buttons, controls, body, and a line that says what happens
function card(root, title, line) {
  const status = el('p', {class: 'nfig-status', role: 'status'})
  const parts = {
    buttons: el('div', {class: 'nfig-buttons'}),
    controls: el('div', {class: 'nfig-controls'}),
    body: el('div', {class: 'nfig-body'}),
    status,
    say(words, wrong = false) {
      status.textContent = words
      status.classList.toggle('nfig-wrong', wrong)
    },
  }
  const node = el('section', {class: 'nfig-card', 'aria-label': title},
    el('header', {}, el('div', {}, el('strong', {}, title), el('span', {}, line)), parts.buttons),
    parts.controls, parts.body, status)
  root.replaceChildren(el('style', {}, styles), node)
  follow(node)
  return parts
}

// Runs the newest of many requests; those that came between are left out
function latest(work, say) {
  let wanted = 0
  let running = false
  return async function ask() {
    wanted += 1
    if (running) return
    running = true
    try {
      for (let mine = 0; mine !== wanted;) {
        mine = wanted
        await work(() => mine === wanted)
      }
    } catch (error) {
      console.warn(error)
      say(error.message ?? String(error), true)
    } finally {
      running = false
    }
  }
}

// Dark or light: whatever lies behind the card
function follow(node) {
  const look = () => {
    for (let o = node.parentElement; o; o = o.parentElement) {
      const [r, g, b, a = 1] = (getComputedStyle(o).backgroundColor.match(/[\d.]+/g) ?? []).map(Number)
      if (!a) continue
      node.classList.toggle('nfig-dark', .3 * r + .6 * g + .1 * b < 110)
      return
    }
    node.classList.toggle('nfig-dark', matchMedia('(prefers-color-scheme: dark)').matches)
  }
  requestAnimationFrame(look)
  const watch = new MutationObserver(() => requestAnimationFrame(look))
  for (const o of [document.documentElement, document.body]) {
    watch.observe(o, {attributes: true, attributeFilter: ['class', 'data-jp-theme-light', 'data-bs-theme']})
  }
}

// ---- Pictures to choose from, and one's own ------------------------------------------------------

async function decodeImage(blob, side) {
  const bitmap = await createImageBitmap(blob)
  const n = Math.min(bitmap.width, bitmap.height)
  const canvas = new OffscreenCanvas(side, side)
  const context = canvas.getContext('2d')
  context.fillStyle = '#fff'
  context.fillRect(0, 0, side, side)
  context.imageSmoothingQuality = 'high'
  context.imageSmoothingEnabled = n !== side
  context.drawImage(bitmap, (bitmap.width - n) / 2, (bitmap.height - n) / 2, n, n, 0, 0, side, side)
  return fromPixels(context.getImageData(0, 0, side, side).data, side, side)
}

let albums = null

// Sets of pictures that come with the page: {set: {name: data URI}}
function allPictures(source) {
  albums ??= json(source, 'pictures.json')
  albums.catch(() => { albums = null })
  return albums
}

// A list of pictures with room for one's own, which stays on this machine: {nodes, value, picture()}
async function picker(source, set, side, {name = 'picture', value, on, drop, say}) {
  const pictures = {...(await allPictures(source))[set]}
  const cache = {}
  const list = () => Object.keys(pictures).map(k => [k, k])
  const chooser = select({name, options: list(), value, on: () => on()})
  const take = async file => {
    try {
      cache[file.name] = await decodeImage(file, side)
    } catch {
      say(`${file.name} cannot be read as a picture: choose a PNG, JPEG or WebP file`, true)
      return
    }
    pictures[file.name] = file
    chooser.fill(list())
    chooser.set(file.name)
    say(`${file.name} is yours; it does not leave this machine`)
    on()
  }
  const file = el('input', {type: 'file', accept: 'image/*', hidden: true, onchange: () => file.files[0] && take(file.files[0])})
  const own = button('yours …', () => file.click(), {class: 'nfig-own', title: 'A picture of yours; it never leaves this machine'})
  chooser.node.append(own, file)
  if (drop) {
    drop.addEventListener('dragover', event => event.preventDefault())
    drop.addEventListener('drop', event => {
      event.preventDefault()
      const dropped = [...event.dataTransfer.files].find(f => f.type.startsWith('image/'))
      if (dropped) take(dropped)
    })
  }
  return {
    node: chooser.node,
    get value() { return chooser.value },
    set(v) { chooser.set(v) },
    names: () => Object.keys(pictures),
    async picture() {
      const key = chooser.value
      cache[key] ??= await decodeImage(await (await fetch(pictures[key])).blob(), side)
      return cache[key]
    },
  }
}

// ---- Bands ---------------------------------------------------------------------------------------

const scaleSets = {
  doubling: [1, 2, 4, 8, 16, 32, 64, 128, 256],
  paper: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
  small: [1, 2, 3, 4, 6, 8],
}
const scaleNames = [['doubling', '1, 2, 4 … 256'], ['paper', 'the paper’s 1, 2, 3 … 16'], ['small', '1, 2, 3, 4, 6, 8']]
const divisionNames = [['nyquist', 'nyquist: what a grid can hold'], ['area', 'area: as many waves as tokens'],
                       ['paper', 'paper: Eq. 7'], ['energy', 'energy: equal for every token']]

export async function bands(root, source, {picture: firstPicture = 'cat', side = 256} = {}) {
  const ui = card(root, 'Bands', 'Take a picture apart by frequency')
  const state = {lower: 3, upper: 6, wave: [3, 5]}
  let image, spectrum, powers, level, memberOf, table
  let sums = []                                           // sums[i]: all bands up to i
  let idle = null

  const own = await picker(source, 'photos', side, {value: firstPicture, drop: root, say: ui.say, on: () => measure()})
  const division = select({name: 'division', options: divisionNames, on: () => divide()})
  const scales = select({name: 'scales', options: scaleNames, on: () => divide()})
  const lower = slider({name: 'from band', min: 1, max: 9, value: 3, on: v => window_(v, Math.max(v, state.upper))})
  const upper = slider({name: 'to band', min: 1, max: 9, value: 6, on: v => window_(Math.min(v, state.lower), v)})
  const steps = () => scaleSets[scales.value].map((_, i) => i + 1)
  const player = transport({steps, on: v => window_(v, v), reset: () => {
    own.set(firstPicture)
    division.set('nyquist')
    scales.set('doubling')
    Object.assign(state, {lower: 3, upper: 6, wave: [3, 5]})
    measure()
  }})
  ui.buttons.append(...player.nodes)
  ui.controls.append(own.node, division.node, scales.node, lower.node, upper.node)

  const plane = panel('spectrum', {tabindex: 0, class: 'nfig-aim', title: 'Click: show this wave alone. Arrow keys move it'})
  const [part, sum, wave] = [panel('the bands'), panel('all up to here'), panel('one wave')]
  const bars = el('table', {class: 'nfig-bars'})
  ui.body.append(el('div', {class: 'nfig-panels'}, ...[plane, part, sum, wave].map(p => p.node)), bars)
  plane.canvas.addEventListener('click', event => {
    const box = plane.canvas.getBoundingClientRect()
    const at = (v, n) => Math.min(n - 1, Math.max(0, Math.floor(v * n))) - (n >> 1)
    aim(at((event.clientY - box.top) / box.height, image.h), at((event.clientX - box.left) / box.width, image.w))
  })
  plane.canvas.addEventListener('keydown', event => {
    const [dy, dx] = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key] ?? []
    if (dy === undefined) return
    event.preventDefault()
    aim(state.wave[0] + dy, state.wave[1] + dx)
  })

  // Move the window, and keep its two ends in order
  function window_(low, high) {
    Object.assign(state, {lower: low, upper: high})
    lower.set(low)
    upper.set(high)
    render()
  }

  function aim(down, across) {
    const inside = (v, n) => Math.min(Math.ceil(n / 2) - 1, Math.max(-(n >> 1), v))
    state.wave = [inside(down, image.h), inside(across, image.w)]
    drawPlane()
    drawWave()
  }

  async function measure() {
    image = await own.picture()
    spectrum = spectra(image)
    powers = power(spectrum, image.h, image.w)
    level = levels(powers, span(powers))
    divide()
    drawWave()
  }

  function divide() {
    const sides = scaleSets[scales.value]
    memberOf = bandOf(sides, image.h, image.w, division.value, powers)
    table = perBand(sides, memberOf, powers)
    sums = [null]
    sums[sides.length] = image
    lower.range(1, sides.length)
    upper.range(1, sides.length)
    window_(Math.min(state.lower, sides.length), Math.min(state.upper, sides.length))
  }

  // All bands up to `i`, and the one after it: two sums in one transform. What was computed is kept
  function sumTo(i) {
    if (sums[i]) return sums[i]
    const {h, w} = image
    const masks = [i, i + 1].map(n => memberOf.map(b => b < n ? 1 : 0))
    const both = spectrum.map(s => filterTwice(s, masks[0], masks[1], h, w))
    sums[i] = {h, w, planes: both.map(b => b[0])}
    sums[i + 1] ??= {h, w, planes: both.map(b => b[1])}
    return sums[i]
  }

  // While nothing else happens, the sums that a next move will ask for
  function prepare() {
    clearTimeout(idle)
    const missing = table.waves.findIndex((_, i) => i && !sums[i])
    if (missing > 0) idle = setTimeout(() => (sumTo(missing), prepare()), 20)
  }

  function drawPlane() {
    const {h, w} = image
    const within = memberOf.map(b => b >= state.lower - 1 && b < state.upper ? 1 : 0)
    const lit = table.waves.slice(state.lower - 1, state.upper).reduce((a, b) => a + b)
    plane.spectrum(level, h, w, `spectrum: ${plural(lit, 'wave')}`,
      `Spectrum of ${own.value}, low frequencies in the middle; bright: the ${plural(lit, 'wave')} of the chosen bands`, within)
    const context = plane.canvas.getContext('2d')
    const [y, x] = [state.wave[0] + (h >> 1), state.wave[1] + (w >> 1)]
    context.strokeStyle = '#fff'
    context.lineWidth = Math.max(1, h / 128)
    context.beginPath()
    context.arc(x + .5, y + .5, h / 32, 0, 7)
    context.stroke()
  }

  function drawWave() {
    const {h, w} = image
    const [down, across] = state.wave
    const k = ((down + h) % h) * w + (across + w) % w
    const [shown, factor] = stretch(oneWave(image, spectrum, (down + h) % h, (across + w) % w))
    const all = powers.reduce((a, b) => a + b) - powers[0]
    const own_ = (2 * down) % h === 0 && (2 * across) % w === 0 ? 1 : 2
    const says = down || across ? `${plural(Math.abs(across), 'wave')} across, ${Math.abs(down)} down: ${percent(own_ * powers[k] / all)} of the energy` : 'the mean: no wave at all'
    wave.picture(shown, says, `One wave alone, ${says}, contrast times ${factor.toPrecision(2)}`)
  }

  function render() {
    const {lower: low, upper: high} = state
    const all = sumTo(high)
    const [shown, factor] = stretch(low > 1 ? add(all, sumTo(low - 1), -1) : all)
    const name = low === high ? `band ${low}` : `bands ${low} to ${high}`
    drawPlane()
    part.picture(shown, factor ? `${name}, contrast × ${factor.toPrecision(2)}` : `${name}: empty`)
    sum.picture(all, high === 1 ? 'band 1' : `bands 1 to ${high}`,
      `${own.value}, all bands up to ${high} of ${table.waves.length}`)
    drawBars(low, high)
    prepare()
  }

  function drawBars(low, high) {
    const columns = Object.entries(table)
    const tops = columns.map(([, v]) => Math.max(...v))
    const head = el('tr', {}, el('th', {}, 'band'), ...columns.map(([name]) => el('th', {}, name)))
    const rows = table.waves.map((_, i) => el('tr', {class: i >= low - 1 && i < high ? 'nfig-on' : ''},
      el('td', {}, button(String(i + 1), () => window_(i + 1, i + 1), {'aria-label': `only band ${i + 1}`})),
      ...columns.map(([name, v], c) => el('td', {},
        el('span', {class: `nfig-bar nfig-bar${c}`, style: `--share:${v[i] / tops[c]}`}),
        el('span', {}, name === 'energy' ? percent(v[i]) : count(v[i]))))))
    const focused = bars.contains(document.activeElement) ? document.activeElement.textContent : null
    bars.replaceChildren(head, ...rows)
    if (focused) bars.querySelectorAll('button')[focused - 1]?.focus()
  }

  await measure()
}

// ---- Grow ----------------------------------------------------------------------------------------

// Models of the page that have all of `parts`
async function models(source, parts, wanted) {
  const all = (await json(source, 'models/index.json')).filter(m => parts.every(p => m.parts.includes(p)))
  if (!all.length) throw new Error(`no model here has ${parts.join(' and ')}`)
  return {all, first: all.find(m => m.name === wanted) ?? all[0]}
}

const megabytes = bytes => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`

// The tokens of a stage as coloured squares on a canvas; `chosen` is outlined
function drawTokens(canvas, quantizer, stage, s, chosen) {
  const unit = Math.max(4, Math.floor(96 / s))
  canvas.width = canvas.height = unit * s
  const context = canvas.getContext('2d')
  stage.tokens.forEach((t, p) => {
    context.fillStyle = `rgb(${quantizer.colour(t).map(Math.round)})`
    context.fillRect(p % s * unit, Math.floor(p / s) * unit, unit - (s > 1 ? .5 : 0), unit - (s > 1 ? .5 : 0))
  })
  if (chosen == null) return
  const [x, y] = [chosen % s * unit, Math.floor(chosen / s) * unit]
  context.lineWidth = 2
  context.strokeStyle = '#fff'
  context.strokeRect(x + 1, y + 1, unit - 2, unit - 2)
  context.strokeStyle = '#000'
  context.lineWidth = 1
  context.strokeRect(x + 2.5, y + 2.5, unit - 5, unit - 5)
}

export async function grow(root, source, {model: wanted = 'fashion-mnist', label: firstLabel = 0, seed: firstSeed = 0} = {}) {
  const ui = card(root, 'Grow', 'A trained model draws, band by band')
  const {all, first} = await models(source, ['transformer', 'decoder'], wanted)
  let model, growth, pictures, range, controls
  const state = {stage: 1, place: 0}

  const which = select({name: 'model', options: all.map(m => [m.name, m.title]), value: first.name, on: () => open()})
  const kind = select({name: 'class', options: [], on: () => regrow()})
  const seed = slider({name: 'seed', min: 0, max: 99, value: firstSeed, on: () => regrow()})
  const guidance = slider({name: 'guidance', min: 0, max: 8, step: .5, value: 0, on: () => regrow()})
  const temperature = slider({name: 'temperature', min: .1, max: 2, step: .1, value: 1, on: () => regrow()})
  const topK = slider({name: 'likeliest codes only', min: 0, max: 9, value: 0, on: () => regrow(), show: v => v ? count(2 ** (v - 1)) : 'all'})
  const stage = slider({name: 'stage', min: 1, max: 6, value: 1, on: v => show(v - 1)})
  const player = transport({steps: () => growth.stages.map((_, i) => i), on: i => show(i), reset: () => defaults()})
  const dice = button('⚄ Another', () => {
    seed.set((seed.value + 1) % 100)
    regrow()
  })
  ui.buttons.append(player.nodes[0], dice, player.nodes[1])
  ui.controls.append(...(all.length > 1 ? [which.node] : []), kind.node, seed.node, guidance.node, temperature.node, topK.node, stage.node)

  const [now, added, plane] = [panel('the picture'), panel('what the stage added'), panel('spectrum')]
  const strip = el('div', {class: 'nfig-strip'})
  const later = el('input', {type: 'checkbox', checked: true})
  const codes = el('div', {class: 'nfig-codes'})
  const about = el('p', {class: 'nfig-about'})
  const inspector = el('div', {class: 'nfig-inspect'}, about, codes, el('div', {class: 'nfig-row'},
    button('Draw this stage anew', () => redraw()), el('label', {}, later, ' keep the tokens of later stages')))
  ui.body.append(el('div', {class: 'nfig-panels nfig-three'}, ...[now, added, plane].map(p => p.node)), strip, inspector)

  function defaults() {
    const s = model.manifest.sample
    const named = model.classes.indexOf(firstLabel)
    kind.set(String(named < 0 ? firstLabel : named))
    seed.set(firstSeed)
    guidance.set(s.cfg_scale)
    temperature.set(s.temperature)
    topK.set(s.top_k ? Math.round(Math.log2(s.top_k)) + 1 : 0)
    regrow()
  }

  async function open() {
    const entry = all.find(m => m.name === which.value) ?? first
    ui.say(`Fetching the model: ${megabytes(entry.bytes)}, once …`)
    model = await openModel(source, entry.name)
    await Promise.all([model.session('transformer'), model.session('decoder')])
    const n = model.quantizer.scales.length
    kind.fill(model.classes.map((c, i) => [String(i), c]))
    topK.range(0, Math.round(Math.log2(model.quantizer.size)))
    stage.range(1, n)
    strip.replaceChildren(...model.quantizer.scales.map((s, i) => stageCard(i, s)))
    controls = [...strip.children]
    defaults()
  }

  function stageCard(i, s) {
    const thumb = el('canvas', {role: 'img', width: model.side, height: model.side, class: model.side <= 64 ? 'nfig-crisp' : ''})
    const grid = el('canvas', {tabindex: 0, role: 'application', class: 'nfig-tokens nfig-crisp', title: 'Click a token: what else could it have been?'})
    grid.addEventListener('click', event => {
      const box = grid.getBoundingClientRect()
      const at = v => Math.min(s - 1, Math.max(0, Math.floor(v * s)))
      inspect(i, at((event.clientY - box.top) / box.height) * s + at((event.clientX - box.left) / box.width))
    })
    grid.addEventListener('keydown', event => {
      const step = {ArrowUp: -s, ArrowDown: s, ArrowLeft: -1, ArrowRight: 1}[event.key]
      if (!step) return
      event.preventDefault()
      inspect(i, Math.min(s * s - 1, Math.max(0, (state.stage === i ? state.place : 0) + step)))
    })
    const pick = button(thumb, () => show(i), {class: 'nfig-thumb', 'aria-label': `stage ${i + 1}`})
    return el('div', {class: 'nfig-stage'}, pick, grid, el('small', {}, `${i + 1}: ${plural(s * s, 'token')}`))
  }

  const settings = () => ({...model.manifest.sample, weights: [], cfg_scale: guidance.value, temperature: temperature.value,
                           top_k: topK.value ? 2 ** (topK.value - 1) : 0})

  // A new image: everything from the first stage on
  const regrow = latest(async current => {
    player.stop()
    if (!model) return
    growth = new Growth(model, Number(kind.value), seed.value, settings())
    await work(0, {}, current)
  }, ui.say)

  // Compute from a stage on, show each stage as it comes
  async function work(from, kept, current = () => true) {
    const start = performance.now()
    const old = pictures
    pictures = from ? pictures.slice(0, from) : []
    const through = await growth.grow(from, kept, async i => {
      pictures[i] = await model.decode(growth.stages[i].fHat)
      if (!current()) return false
      drawStage(i)
      show(i)
      await breathe()
    })
    if (!through) { pictures = old && old.length === model.quantizer.scales.length ? old : pictures; return }
    const n = pictures.length
    const s = spectra(pictures[n - 1])
    range = span(power(s, model.side, model.side))
    show(from ? Math.max(from, state.stage) : n - 1)
    ui.say(`${model.classes[growth.label]}, drawn ${from ? `from stage ${from + 1} on ` : ''}in ${((performance.now() - start) / 1000).toFixed(2)} s in this page`)
  }

  function redraw() {
    const i = state.stage
    growth.seed += 1
    change(i, {})
  }

  // Go on from stage i with some tokens given
  const change = (i, given) => {
    const kept = {...given}
    if (later.checked) growth.stages.forEach((st, j) => { if (j > i) kept[j] = st.tokens })
    work(i, kept).then(() => inspect(i, state.place)).catch(error => ui.say(error.message, true))
  }

  function drawStage(i) {
    const [thumb, grid] = controls[i].querySelectorAll('canvas')
    thumb.getContext('2d').putImageData(new ImageData(pixels(pictures[i]), model.side, model.side), 0, 0)
    thumb.setAttribute('aria-label', `after stage ${i + 1}`)
    drawTokens(grid, model.quantizer, growth.stages[i], model.quantizer.scales[i], i === state.stage ? state.place : null)
    grid.setAttribute('aria-label', `tokens of stage ${i + 1}: ${[...growth.stages[i].tokens].slice(0, 16).join(' ')}`)
  }

  // Look at the picture after stage i
  function show(i) {
    if (!pictures?.[i]) return
    const before = state.stage
    state.stage = i
    const s = model.quantizer.scales[i]
    if (state.place >= s * s) state.place = 0
    stage.set(i + 1)
    const name = `after stage ${i + 1} of ${model.quantizer.scales.length}`
    now.picture(pictures[i], name, `${model.classes[growth.label]}, ${name}`)
    const [more, factor] = stretch(i ? add(pictures[i], pictures[i - 1], -1) : pictures[i])
    added.picture(more, i ? `stage ${i + 1} added, contrast × ${factor.toPrecision(2)}` : 'stage 1 made this from nothing')
    const powers = power(spectra(pictures[i]), model.side, model.side)
    plane.spectrum(levels(powers, range ?? span(powers)), model.side, model.side, 'its spectrum', `spectrum ${name}, low frequencies in the middle`)
    controls.forEach((c, j) => c.classList.toggle('nfig-on', j === i))
    for (const j of new Set([before, i])) if (growth.stages[j] && pictures[j]) drawStage(j)
    listCodes()
  }

  function inspect(i, place) {
    state.place = place
    show(i)
  }

  function listCodes() {
    const [i, p] = [state.stage, state.place]
    const s = model.quantizer.scales[i]
    const token = growth.stages[i].tokens[p]
    const best = growth.likeliest(i, p)
    about.textContent = `Stage ${i + 1}, row ${Math.floor(p / s) + 1}, column ${p % s + 1}: code ${token}. The model’s likeliest codes here; press one to put it there:`
    const top = best[0].p
    codes.replaceChildren(...best.map(({token: t, p: chance}) => button(
      el('span', {class: 'nfig-code'},
        el('i', {style: `background:rgb(${model.quantizer.colour(t).map(Math.round)})`}),
        el('b', {}, String(t)), el('em', {style: `--share:${chance / top}`}), el('span', {}, percent(chance))),
      () => {
        const tokens = growth.stages[i].tokens.slice()
        tokens[p] = t
        change(i, {[i]: tokens})
      }, {'aria-pressed': String(t === token), 'aria-label': `code ${t}, ${percent(chance)}`})))
  }

  await open()
}

// ---- Tokenize ------------------------------------------------------------------------------------

export async function tokenize(root, source, {model: wanted = 'fashion-mnist', picture: firstPicture} = {}) {
  const ui = card(root, 'Tokenize', 'Your picture as tokens, and back')
  const {all, first} = await models(source, ['encoder', 'decoder'], wanted)
  const targets = ['band', 'full']
  const names = {band: 'NFIG', full: 'VAR'}
  let model, album, image, ways, imagePower
  let k = 1

  const which = select({name: 'tokenizer', options: all.map(m => [m.name, m.title]), value: first.name, on: () => open()})
  const stages = slider({name: 'stages', min: 1, max: 6, value: 6, on: v => show(v)})
  const player = transport({steps: () => model.quantizer.scales.map((_, i) => i + 1), on: v => show(v), reset: () => {
    album.set(firstPicture ?? album.names()[0])
    k = model.quantizer.scales.length
    encode()
  }})
  ui.buttons.append(...player.nodes)
  const original = panel('the original')
  const rows = targets.map(t => ({target: t, back: panel('back'), error: panel('error'), plane: panel('spectrum'),
                                  tokens: el('canvas', {class: 'nfig-tokens nfig-crisp', role: 'img'}), said: el('figcaption', {})}))
  const table = el('div', {class: 'nfig-two'}, ...rows.map(r => el('section', {'aria-label': names[r.target]},
    el('h4', {}, r.target === 'band' ? 'NFIG: stage i aims at bands 1 to i' : 'VAR: every stage aims at all of it'),
    el('div', {class: 'nfig-panels'}, r.back.node, el('figure', {class: 'nfig-panel'}, r.tokens, r.said), r.error.node, r.plane.node))))
  const decibels = el('table', {class: 'nfig-table'})
  const aside = el('div', {class: 'nfig-original'}, original.node, el('div', {},
    el('p', {class: 'nfig-about'}, 'Both sides use the same encoder, codes and decoder, trained for NFIG’s way, and differ only in what a stage aims at. Decibels after each stage:'), decibels))
  ui.body.append(aside, table)

  async function open() {
    const entry = all.find(m => m.name === which.value) ?? first
    ui.say(`Fetching the tokenizer: ${megabytes(entry.bytes)}, once …`)
    model = await openModel(source, entry.name)
    await Promise.all([model.session('encoder'), model.session('decoder')])
    const sets = await allPictures(source)
    album = await picker(source, sets[model.name] ? model.name : 'photos', model.side,
      {value: firstPicture, drop: root, say: ui.say, on: () => encode()})
    ui.controls.replaceChildren(...(all.length > 1 ? [which.node] : []), album.node, stages.node)
    stages.range(1, model.quantizer.scales.length)
    k = model.quantizer.scales.length
    await encode()
  }

  const encode = latest(async current => {
    image = await album.picture()
    const start = performance.now()
    imagePower = power(spectra(image), model.side, model.side)
    const latent = await model.latent(image)
    const found = {}
    for (const target of targets) {
      const done = model.quantizer.encode(latent, target)
      found[target] = []
      for (const stage of done) {
        const back = await model.decode(stage.fHat)
        if (!current()) return
        found[target].push({...stage, back})
      }
    }
    ways = found
    original.picture(image, `${album.value}, ${model.side} × ${model.side} pixels`)
    ui.say(`Encoded and decoded twice in ${((performance.now() - start) / 1000).toFixed(2)} s in this page`)
    show(k)
  }, ui.say)

  function show(v) {
    k = v
    stages.set(k)
    if (!ways) return
    const {side, quantizer: q} = model
    const range = span(imagePower)
    const line = (head, cells) => el('tr', {}, el('th', {scope: 'row'}, head), ...cells.map((c, i) => el('td', {class: i === k - 1 ? 'nfig-on' : ''}, c)))
    decibels.replaceChildren(
      line('stage', q.scales.map((_, i) => button(String(i + 1), () => show(i + 1), {'aria-label': `after stage ${i + 1}`}))),
      ...targets.map(t => line(names[t], ways[t].map(s => psnr(image, s.back).toFixed(1)))))
    for (const {target, back, error, plane, tokens, said} of rows) {
      const stage = ways[target][k - 1]
      const far = add(image, stage.back, -1)
      const [shown, factor] = stretch(far)
      const until = q.scales.slice(0, k).reduce((sum, s) => sum + s * s, 0)
      back.picture(stage.back, `after ${plural(until, 'token')}: ${psnr(image, stage.back).toFixed(1)} dB`)
      error.picture(shown, `error, contrast × ${factor.toPrecision(2)}`)
      plane.spectrum(levels(power(spectra(far), side, side), range), side, side, 'spectrum of the error',
        'Spectrum of the error on the colours of the picture: as bright as in the picture means that a wave is missing')
      drawTokens(tokens, q, stage, q.scales[k - 1], null)
      said.textContent = `stage ${k}: ${plural(q.scales[k - 1] ** 2, 'token')}`
      tokens.setAttribute('aria-label', `${names[target]}, tokens of stage ${k}: ${[...stage.tokens].slice(0, 16).join(' ')}`)
    }
  }

  await open()
}

// ---- Mix -----------------------------------------------------------------------------------------

export async function mix(root, source, {low: firstLow, high: firstHigh, way: firstWay = 'pixels', model: wanted = 'fashion-mnist'} = {}) {
  const ui = card(root, 'Mix', 'Low bands of one picture, high bands of another')
  const way = select({name: 'mix', options: [['pixels', 'waves of pixels'], ['tokens', 'tokens of a model']], value: firstWay, on: () => open()})
  let low, high, model, sides, parts
  let cut = 5
  const upTo = slider({name: 'first picture up to band', min: 0, max: 9, value: cut, on: v => show(v)})
  const player = transport({steps: () => [...sides.map((_, i) => i), sides.length], on: v => show(v), reset: () => open()})
  const swap = button('⇄ Swap', () => {
    const [a, b] = [low.value, high.value]
    if (!high.names().includes(a) || !low.names().includes(b)) return ui.say('Your own picture stands on one side only: choose it on the other side too', true)
    low.set(b)
    high.set(a)
    measure()
  })
  ui.buttons.append(player.nodes[0], swap, player.nodes[1])
  const panels = [panel('low'), panel('the mixture'), panel('high')]
  ui.body.append(el('div', {class: 'nfig-panels nfig-three'}, ...panels.map(p => p.node)),
    el('p', {class: 'nfig-about'}, 'Step back from the screen, or half close your eyes: the low frequencies win. Come close: the high ones do.'))

  async function open() {
    player.stop()
    let set = 'photos'
    let side = 256
    sides = scaleSets.doubling
    if (way.value === 'tokens') {
      const {first} = await models(source, ['encoder', 'decoder'], wanted)
      ui.say(`Fetching the tokenizer: ${megabytes(first.bytes)}, once …`)
      model = await openModel(source, first.name)
      await Promise.all([model.session('encoder'), model.session('decoder')])
      sides = model.quantizer.scales
      side = model.side
      if ((await allPictures(source))[model.name]) set = model.name
    }
    const names = Object.keys((await allPictures(source))[set])
    const options = {say: ui.say, on: () => measure()}
    const known = (name, otherwise) => names.includes(name) ? name : otherwise
    low = await picker(source, set, side, {...options, name: 'low bands of', value: known(firstLow, names[0])})
    high = await picker(source, set, side, {...options, name: 'high bands of', value: known(firstHigh, names[1])})
    ui.controls.replaceChildren(way.node, low.node, high.node, upTo.node)
    upTo.range(0, sides.length)
    cut = Math.ceil(sides.length / 2)
    ui.say('')
    await measure()
  }

  const measure = latest(async current => {
    const images = [await low.picture(), await high.picture()]
    if (way.value === 'pixels') {
      const {h, w} = images[0]
      const memberOf = bandOf(sides, h, w, 'nyquist')
      parts = {h, w, memberOf, spectra: images.map(spectra)}
    } else {
      const tokens = []
      for (const image of images) tokens.push(model.quantizer.encode(await model.latent(image), 'band').map(s => s.tokens))
      if (!current()) return
      parts = {tokens}
    }
    await show(cut)
  }, ui.say)

  async function mixPixels() {
    const {h, w, memberOf, spectra: [a, b]} = parts
    const inLow = memberOf.map(m => m < cut ? 1 : 0)
    const inHigh = memberOf.map(m => m < cut ? 0 : 1)
    const nothing = new Uint8Array(h * w)
    const planes = [a, b].map((s, i) => s.map(c => filterTwice(c, i ? inHigh : inLow, nothing, h, w)[0]))
    const [slow, fast] = planes.map(p => ({h, w, planes: p}))
    return [slow, add(slow, fast), stretch(fast)[0]]
  }

  async function mixTokens() {
    const [a, b] = parts.tokens
    const q = model.quantizer
    const running = tokens => q.stages(i => tokens[i])
    const mixed = a.map((t, i) => i < cut ? t : b[i])
    const first = running(a)
    const blank = {fHat: q.empty()}
    return Promise.all([cut ? first[cut - 1] : blank, running(mixed).at(-1), running(b).at(-1)].map(s => model.decode(s.fHat)))
  }

  const draw = latest(async () => {
    const [a, both, b] = await (way.value === 'pixels' ? mixPixels() : mixTokens())
    const n = sides.length
    panels[0].picture(a, cut ? `${low.value}: bands 1 to ${cut}` : `${low.value}: nothing of it`)
    panels[1].picture(both, 'the mixture', `Mixture: bands 1 to ${cut} of ${low.value}, the others of ${high.value}`)
    const rest = way.value === 'pixels' ? cut < n ? `bands ${cut + 1} to ${n}` : 'nothing of it' : 'all of it'
    panels[2].picture(b, `${high.value}: ${rest}`)
  }, ui.say)

  function show(v) {
    cut = v
    upTo.set(v)
    return draw()
  }

  await open()
}

// ---- Start ---------------------------------------------------------------------------------------

export const instruments = {bands, grow, tokenize, mix}

// Put an instrument into an element; a failure becomes a sentence in its place
export async function mount(root, kind, source, options = {}) {
  try {
    await instruments[kind](root, source, options)
  } catch (error) {
    console.warn(error)
    root.replaceChildren(el('p', {class: 'nfig-failed', role: 'alert'}, `This instrument could not start: ${error.message ?? error}`))
  }
}

const styles = `
.nfig-card {
  --paper: #fff; --ink: #1d2430; --soft: #5b6675; --line: #d8dee6; --wash: #f3f6f9; --accent: #0072b2; --on: #0072b21c;
  container-type: inline-size; box-sizing: border-box; max-width: 62rem; margin: 1rem 0; padding: 1rem 1.1rem .6rem;
  color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: .9rem;
  font: 14px/1.45 system-ui, sans-serif; box-shadow: 0 1px 3px #0000000f, 0 8px 24px -16px #0004;
}
.nfig-card.nfig-dark {
  --paper: #1b2027; --ink: #e8edf3; --soft: #a0acba; --line: #38424e; --wash: #252c35; --accent: #6cc0f5; --on: #6cc0f526;
}
.nfig-card *, .nfig-card *::before { box-sizing: border-box; }
.nfig-card header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; justify-content: space-between; margin-bottom: .8rem; }
.nfig-card header strong { font-size: 1.2rem; margin-right: .6rem; }
.nfig-card header span, .nfig-card figcaption, .nfig-card label, .nfig-card small, .nfig-about { color: var(--soft); }
.nfig-buttons, .nfig-row { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; }
.nfig-card button, .nfig-card select {
  font: inherit; color: var(--ink); background: var(--wash); border: 1px solid var(--line); border-radius: .5rem;
  padding: .35rem .7rem; min-height: 2.2rem; cursor: pointer;
}
.nfig-card button:hover, .nfig-card select:hover { border-color: var(--accent); }
.nfig-card button.nfig-play { background: var(--accent); border-color: var(--accent); color: var(--paper); min-width: 6rem; font-weight: 600; }
.nfig-card :is(button, select, input, canvas):focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.nfig-controls { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.2rem), 1fr)); gap: .5rem 1.1rem; align-items: end; margin-bottom: .9rem; }
.nfig-control { display: flex; flex-direction: column; gap: .15rem; min-width: 0; }
.nfig-control label { display: flex; justify-content: space-between; gap: .5rem; margin: 0; font-size: .86rem; }
.nfig-control output { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.nfig-control input[type=range] { width: 100%; min-height: 2.2rem; margin: 0; accent-color: var(--accent); }
.nfig-control select { width: 100%; min-width: 0; }
.nfig-select { position: relative; }
.nfig-card .nfig-own { position: absolute; right: 0; top: 0; min-height: 0; padding: 0; border: 0; background: none; color: var(--accent); font-size: .86rem; line-height: 1.45; }
.nfig-card .nfig-own:hover { text-decoration: underline; }
.nfig-panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .7rem; }
.nfig-panels.nfig-three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.nfig-panel { margin: 0; min-width: 0; }
.nfig-panel canvas, .nfig-stage canvas { display: block; width: 100%; aspect-ratio: 1; border-radius: .4rem; background: var(--wash); }
.nfig-card canvas.nfig-crisp { image-rendering: pixelated; }
.nfig-panel figcaption { margin: .25rem 0 0; font-size: .84rem; line-height: 1.3; text-align: left; min-height: 2.6em; font-variant-numeric: tabular-nums; }
.nfig-aim { cursor: crosshair; }
.nfig-bars { width: 100%; max-width: 46rem; margin: .4rem 0 0; border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; color: inherit; }
.nfig-card .nfig-bars :is(th, td, tr) { border: 0; background: none; padding: .1rem .5rem .1rem 0; text-align: left; font-weight: inherit; color: inherit; white-space: nowrap; }
.nfig-card .nfig-bars th { color: var(--soft); }
.nfig-card .nfig-bars tr.nfig-on td { font-weight: 700; }
.nfig-card .nfig-bars tr.nfig-on button { background: var(--accent); border-color: var(--accent); color: var(--paper); }
.nfig-card .nfig-bars button { min-height: 0; padding: 0 .3rem; min-width: 1.9rem; font-weight: inherit; }
.nfig-bar { display: inline-block; width: calc(var(--share) * clamp(2rem, 12cqw, 7rem)); min-width: 1px; height: .75em; margin-right: .4rem; border-radius: 2px; vertical-align: -.05em; }
.nfig-bar0 { background: #0072b2; } .nfig-bar1 { background: #e69f00; } .nfig-bar2 { background: #009e73; }
.nfig-strip { display: flex; flex-wrap: wrap; gap: .5rem; margin: .6rem 0; }
.nfig-stage { flex: 1 1 5.2rem; max-width: 7.4rem; padding: .35rem; border: 1px solid var(--line); border-radius: .6rem; display: flex; flex-direction: column; gap: .35rem; }
.nfig-stage.nfig-on { border-color: var(--accent); background: var(--on); }
.nfig-card .nfig-thumb { padding: 0; border: 0; background: none; }
.nfig-tokens { cursor: pointer; }
.nfig-stage small { font-size: .78rem; }
.nfig-about { margin: .4rem 0; font-size: .88rem; }
.nfig-codes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9rem), 1fr)); gap: .4rem; margin: .4rem 0 .6rem; }
.nfig-card .nfig-codes button { padding: .3rem .5rem; text-align: left; }
.nfig-card .nfig-codes button[aria-pressed=true] { border-color: var(--accent); background: var(--on); }
.nfig-code { display: flex; align-items: center; gap: .4rem; font-variant-numeric: tabular-nums; }
.nfig-code i { width: 1.1rem; height: 1.1rem; border-radius: .25rem; flex: none; }
.nfig-code b { min-width: 2.4em; }
.nfig-code em { flex: 1; height: .5em; border-radius: 2px; background: linear-gradient(to right, var(--accent) calc(100% * var(--share)), var(--line) 0); }
.nfig-two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .4rem 1.4rem; }
.nfig-two .nfig-panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.nfig-table { border-collapse: collapse; margin: 0; font-size: .86rem; font-variant-numeric: tabular-nums; color: inherit; }
.nfig-card .nfig-table :is(th, td, tr) { border: 0; background: none; color: inherit; padding: .1rem .35rem; text-align: center; font-weight: inherit; }
.nfig-card .nfig-table th { color: var(--soft); text-align: left; padding-left: 0; }
.nfig-card .nfig-table td.nfig-on { font-weight: 700; background: var(--on); }
.nfig-card .nfig-table button { min-height: 0; padding: 0 .3rem; min-width: 2.1rem; font-weight: inherit; }
.nfig-two h4 { margin: .4rem 0; font-size: .95rem; color: var(--ink); }
.nfig-original { display: flex; gap: 1rem; align-items: start; }
.nfig-original .nfig-panel { width: calc(25% - .7rem); flex: none; }
.nfig-status { min-height: 1.5em; margin: .4rem 0 0; font-size: .84rem; color: var(--soft); }
.nfig-status.nfig-wrong, .nfig-failed { color: #d55e00; font-weight: 600; }
@container (max-width: 36rem) {
  .nfig-controls { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .4rem .9rem; }
  .nfig-panels, .nfig-panels.nfig-three { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .nfig-three > :first-child { grid-column: span 2; }
  .nfig-stage { flex-basis: 29%; max-width: 31.5%; }
  .nfig-original { flex-wrap: wrap; gap: .4rem; }
  .nfig-original .nfig-panel { width: calc(50% - .4rem); }
  .nfig-two { grid-template-columns: minmax(0, 1fr); }
  .nfig-card .nfig-table :is(th, td) { padding: .1rem .2rem; }
  .nfig-card .nfig-table button { min-width: 1.7rem; }
  .nfig-card .nfig-bars td, .nfig-bars th { padding-right: .2rem; }
}
`
