// The home on a static site: files lie beside this script, and nothing is fetched before a visitor asks.
import {mount} from './instruments.js'

// Files of a folder on the server; each is fetched once
function folder(base) {
  const got = new Map()
  return {
    file(path) {
      if (!got.has(path)) {
        const asking = fetch(new URL(path, base)).then(async answer => {
          if (!answer.ok) throw new Error(`${path} is not on this site (${answer.status})`)
          return new Uint8Array(await answer.arrayBuffer())
        })
        asking.catch(() => got.delete(path))
        got.set(path, asking)
      }
      return got.get(path)
    },
  }
}

const site = folder(new URL('.', import.meta.url))

// Put the instrument in the place of its picture
export async function start(figure) {
  const {kind, options} = figure.dataset
  const root = document.createElement('div')
  figure.replaceChildren(root)
  await mount(root, kind, site, JSON.parse(options || '{}'))
  root.querySelector('button')?.focus({preventScroll: true})
}
