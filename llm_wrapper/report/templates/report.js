for (const gallery of document.querySelectorAll(".gallery")) {
  const choices = [...gallery.querySelectorAll("select")];
  const show = () => {
    let count = 0;
    for (const one of gallery.querySelectorAll(".case")) {
      one.hidden = choices.some(c => c.value && !one.getAttribute("data-" + c.name).split("|").includes(c.value));
      count += !one.hidden;
    }
    gallery.querySelector("output").textContent = count ? count + " cases" : "no data";
  };
  for (const choice of choices) choice.addEventListener("change", show);
  show();
}
