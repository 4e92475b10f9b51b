/**
 * A line over time, drawn as SVG.
 *
 * @typedef {{id: string, at: string, value: number, words: string, note: string}} Point
 * @typedef {{id: string, title: string, from: number, to: number, bands: import("./scoring.js").Band[],
 *   points: Point[], labels: ((value: number) => string) | null}} Series
 */
import { h, svg } from "./dom.js";
import { date, t } from "./i18n.js";

const DAY_MS = 86_400_000;
const HEIGHT = 260;
const MARGIN = { top: 14, right: 16, bottom: 34, left: 40 };

/**
 * The chart in a figure that redraws itself when its width changes, so that its text keeps its size.
 * @param {Series} series
 */
export function chart(series) {
  const figure = h("figure.chart");
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (!figure.isConnected) {
      observer.disconnect();
      return;
    }
    const now = Math.floor(figure.clientWidth);
    if (now === width || now === 0) return;
    width = now;
    figure.replaceChildren(draw(series, width));
  });
  observer.observe(figure);
  return figure;
}

/** @param {Series} series @param {number} width */
function draw(series, width) {
  const { points, from, to } = series;
  const times = points.map((p) => Date.parse(p.at));
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const span = last - first;
  const left = series.labels ? MARGIN.left + 34 : MARGIN.left;
  const inner = width - left - MARGIN.right;
  // A single time lies in the middle.
  const x = (time) => left + (span ? (time - first) / span : 0.5) * inner;
  const y = (value) => MARGIN.top + (1 - (value - from) / (to - from)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img" });
  root.setAttribute("aria-label", summary(series));
  series.bands.forEach((band, i) => {
    if (i % 2) return;
    const [low, high] = [Math.max(from, band.from - 0.5), Math.min(to, band.to + 0.5)];
    root.append(svg("rect", { class: "band", x: left, width: inner, y: y(high), height: y(low) - y(high) }));
  });
  for (const band of series.bands) {
    const middle = y((Math.max(from, band.from) + Math.min(to, band.to)) / 2);
    root.append(
      svg("text", { class: "band-name", x: left + inner - 6, y: middle + 4, "text-anchor": "end" }, band.name),
    );
  }
  for (const value of ticks(series)) {
    root.append(
      svg("line", { class: "grid", x1: left, x2: left + inner, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, series.labels?.(value) ?? String(value)),
    );
  }
  // Within some days the hour tells the ends apart.
  /** @type {Intl.DateTimeFormatOptions} */
  const style =
    span < 2 * DAY_MS
      ? { month: "numeric", day: "numeric", hour: "numeric", minute: "2-digit" }
      : { dateStyle: "medium" };
  for (const [time, anchor] of span
    ? [
        [first, "start"],
        [last, "end"],
      ]
    : [[first, "middle"]]) {
    root.append(svg("text", { x: x(time), y: HEIGHT - 10, "text-anchor": anchor }, date(time, style)));
  }
  root.append(
    svg("polyline", { class: "line", points: points.map((p, i) => `${x(times[i])},${y(p.value)}`).join(" ") }),
  );
  points.forEach((point, i) => {
    const dot = svg("circle", { class: "dot", cx: x(times[i]), cy: y(point.value), r: 4.5 });
    dot.append(svg("title", {}, `${date(point.at)}: ${point.value} ${point.words}`));
    root.append(dot);
  });
  return root;
}

/** @param {Series} series */
function ticks({ from, to, bands }) {
  if (!bands.length) return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  return [...bands.map((band) => band.from), to];
}

/** What the chart says, in a sentence. @param {Series} series */
function summary({ title, points }) {
  const [first, last] = [points[0], /** @type {Point} */ (points.at(-1))];
  return t("records.summary", {
    title,
    count: points.length,
    first: date(first.at),
    from: first.value,
    last: date(last.at),
    to: last.value,
  });
}
