// Numbers, times and keys as text.
import { h } from "./dom.js";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clockTime = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const shortTime = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

export const NONE = "–";

/** Return a count: 942, 12,345, 1.2 M. */
export function count(number) {
  if (number === null || number === undefined) return NONE;
  if (number >= 1e9) return `${(number / 1e9).toFixed(1)} G`;
  if (number >= 1e6) return `${(number / 1e6).toFixed(1)} M`;
  return whole.format(number);
}

/** Return a rate with one decimal below 10. */
export function rate(number) {
  if (number === null || number === undefined) return NONE;
  return number > 0 && number < 9.95 ? number.toFixed(1) : count(number);
}

/** Return seconds in a readable unit: 0.4 ms, 12 ms, 1.2 s, 3 min, 2 h, 5 d. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const size = Math.abs(seconds);
  if (size === 0) return "0 s";
  if (size < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (size < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (size < 0.9995) return `${(seconds * 1000).toFixed(0)} ms`;
  if (size < 9.95) return `${seconds.toFixed(1)} s`;
  if (size < 99.5) return `${seconds.toFixed(0)} s`;
  if (size < 5400) return `${(seconds / 60).toFixed(0)} min`;
  if (size < 172800) return `${(seconds / 3600).toFixed(0)} h`;
  return `${(seconds / 86400).toFixed(0)} d`;
}

/** Return how long something took. Zero means less than a millisecond, the resolution of many servers' clocks. */
export function took(seconds) {
  return seconds === 0 ? "< 1 ms" : duration(seconds);
}

/** Return whole seconds, for durations that count up on the page. */
export function lasting(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 100 ? `${whole} s` : duration(whole);
}

export function bytes(number) {
  if (number === null || number === undefined) return NONE;
  if (number < 1024) return `${whole.format(number)} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let size = number / 1024;
  while (size >= 999.5 && units.length > 1) {
    size /= 1024;
    units.shift();
  }
  return `${size < 9.95 ? size.toFixed(1) : size.toFixed(0)} ${units[0]}`;
}

/** Return a share as per cent. It is 100 % or 0 % only if it is exactly all or nothing. */
export function share(part, all) {
  if (!all) return NONE;
  // Means of counts have rounding errors.
  const percent = Math.round((1e8 * part) / all) / 1e6;
  if (percent > 99.95 && percent < 100) return "99.9 %";
  if (percent > 0 && percent < 0.05) return "0.1 %";
  return `${percent === 100 || percent === 0 ? percent.toFixed(0) : percent.toFixed(1)} %`;
}

export function clock(moment) {
  return clockTime.format(moment * 1000);
}

export function minute(moment) {
  return shortTime.format(moment * 1000);
}

/** Return "1 key" or "3 keys". */
export function number(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** Return a key as an element. Its hashed parts have a style of their own, and a word for screen readers. */
export function keyName(key) {
  const spans = key.parts.map(([text, hashed]) =>
    hashed
      ? h("span", { class: "hashed", title: `hashed, because the value may be secret: ${text}` }, h("span", { class: "unseen" }, "hashed "), text)
      : text,
  );
  return h("span", { class: "key", title: key.text }, ...spans);
}
