const PAGE = 12;
for (const gallery of document.querySelectorAll(".gallery")) {
  const choices = [...gallery.querySelectorAll("select")];
  const cases = [...gallery.querySelectorAll(".case")];
  const more = gallery.querySelector("button");
  let most = PAGE;
  const fits = (one, name, value) => !value || one.getAttribute("data-" + name).split("|").includes(value);
  const show = () => {
    const found = cases.filter(one => choices.every(c => fits(one, c.name, c.value)));
    for (const one of cases) one.hidden = true;
    for (const one of found.slice(0, most)) one.hidden = false;
    more.hidden = found.length <= most;
    gallery.querySelector("output").textContent = Math.min(most, found.length) + " of " + found.length + " cases";
    // An option that would leave no case cannot be chosen.
    for (const choice of choices) {
      const others = cases.filter(one => choices.every(c => c === choice || fits(one, c.name, c.value)));
      for (const option of choice.options) option.disabled = !others.some(one => fits(one, choice.name, option.value));
    }
  };
  for (const choice of choices) choice.addEventListener("change", () => { most = PAGE; show(); });
  more.addEventListener("click", () => { most += PAGE; show(); });
  for (const link of document.querySelectorAll('a[data-family][href="#' + gallery.id + '"]')) {
    link.addEventListener("click", () => {
      for (const choice of choices) choice.value = choice.name === link.dataset.family ? link.dataset.slice : "";
      most = PAGE;
      show();
    });
  }
  show();
}
const unfold = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (const each of target ? target.querySelectorAll(":scope > details") : []) each.open = true;
};
addEventListener("hashchange", unfold);
unfold();
