const read = id => JSON.parse(document.getElementById(id).textContent);
const templates = read("templates");
const dark = matchMedia("(prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll("[data-figure]")].map(place => [place, read(`spec-${place.dataset.figure}`)]);
const config = { // dragging scrolls the page; on a phone the camera would lie over the figure
  responsive: true, displaylogo: false, modeBarButtons: [["toImage"]], displayModeBar: innerWidth < 700 ? false : "hover",
};
function draw() {
  const template = templates[dark.matches ? "dark" : "light"];
  for (const [place, spec] of plots) {
    const layout = { ...structuredClone(spec.layout), template, autosize: true, dragmode: false };
    Plotly.react(place, structuredClone(spec.data), layout, config);
  }
}
dark.addEventListener("change", draw);
draw();
