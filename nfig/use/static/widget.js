// The home in a notebook (anywidget): the kernel hands out the files, the page computes.
import {el, mount} from './instruments.js'

// Files that the kernel holds: asked for by message, each once
function kernel(model) {
  const waiting = new Map()
  const got = new Map()
  model.on('msg:custom', (message, buffers) => {
    const {done, failed} = waiting.get(message.path) ?? {}
    waiting.delete(message.path)
    if (message.error) failed?.(new Error(message.error))
    else if (done) done(new Uint8Array(buffers[0].buffer, buffers[0].byteOffset, buffers[0].byteLength))
  })
  return {
    file(path) {
      if (!got.has(path)) {
        const asking = new Promise((done, failed) => waiting.set(path, {done, failed}))
        asking.catch(() => got.delete(path))
        got.set(path, asking)
        model.send({want: path})
      }
      return got.get(path)
    },
  }
}

export default {
  render({model, el: root}) {
    const start = () => mount(root, model.get('kind'), kernel(model), model.get('options'))
    if (model.get('playing')) {
      start()
      return
    }
    const image = el('img', {src: model.get('poster'), alt: model.get('alt')})
    image.style = 'display: block; width: 36rem; max-width: 100%; border-radius: .5rem'
    const button = el('button', {type: 'button', onclick: start}, '▶ Play with it')
    button.style = 'font: 600 14px system-ui; margin: .5rem 0; padding: .4rem .9rem; border: 0; border-radius: .5rem; color: #fff; background: #0072b2; cursor: pointer'
    root.replaceChildren(image, button)
  },
}
