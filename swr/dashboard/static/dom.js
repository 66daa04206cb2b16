// Makes elements from data. Data becomes text nodes and attribute values, never markup.

// Control characters, and characters that change the direction of all text after them, in a version for example.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** Return a text in which U+FFFD replaces each control or direction character. */
export function plain(text) {
  return String(text).replace(UNSEEN, "\ufffd");
}

/** Return an element. `on*` properties are listeners; true sets an attribute without a value, false leaves it out. */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else set(element, name, value);
  }
  const shown = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...shown.map((child) => (child instanceof Node ? child : plain(child))));
  return element;
}

/** Set an attribute if it changes; false and null remove it. */
export function set(element, name, value) {
  if (value === false || value === null || value === undefined) element.removeAttribute(name);
  else {
    const text = value === true ? "" : plain(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

/** Set an element's text if it changes, so that a selection survives and a live region stays silent. */
export function say(element, text) {
  const words = plain(text);
  if (element.textContent !== words) element.textContent = words;
}

/** Replace the children of an element if their text or structure changes. */
export function fill(element, ...children) {
  const made = h("div", null, ...children);
  made.normalize();
  const old = [...element.childNodes];
  const fresh = [...made.childNodes];
  if (old.length === fresh.length && fresh.every((node, index) => node.isEqualNode(old[index]))) return;
  element.replaceChildren(...fresh);
}

/**
 * Keep one child for each item, in order. `make` returns a new child, and `update` fills it.
 *
 * The focus stays on its child while other children are added, removed or moved. If its child is removed, the
 * scrolling element around it gets the focus.
 */
export function keep(parent, items, keyOf, make, update) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const old = new Map([...parent.children].map((child) => [child.keptFor, child]));
  const times = new Map();
  let before = parent.firstElementChild;
  for (const item of items) {
    const name = keyOf(item);
    // Two items may have the same name: two hanging loads of a loader, for example.
    times.set(name, (times.get(name) ?? 0) + 1);
    const key = `${times.get(name)} ${name}`;
    let child = old.get(key);
    if (child) old.delete(key);
    else {
      child = make(item);
      child.keptFor = key;
    }
    update(child, item);
    if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
  }
  for (const child of old.values()) child.remove();
  // An element that is moved loses the focus.
  if (focused && document.activeElement !== focused) {
    (focused.isConnected ? focused : parent.closest("[tabindex]"))?.focus({ preventScroll: true });
  }
}

/** Return a link, or plain text if the address is not an http or https URL. */
export function link(address, text) {
  let url;
  try {
    url = new URL(address, document.baseURI);
  } catch {
    return text;
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return text;
  return h("a", { href: url.href, target: "_blank", rel: "noreferrer" }, text);
}

/** Return a panel's heading, with further elements beside it. */
export function heading(id, text, ...beside) {
  return h("div", { class: "head" }, h("h2", { id }, text), ...beside);
}

/** Return the text of a panel that has nothing to show: a title, and what to do next. */
export function empty(title, ...next) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), h("p", null, ...next));
}
