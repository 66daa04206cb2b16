// Short names in tables stay whole. Long names break after a point, an underscore, a bracket or the like, and not in the
// middle of a word. The reference keeps the names of its parameters whole.
document$.subscribe(() => {
  for (const code of document.querySelectorAll(".md-typeset table code:not(.doc td:first-child code, :has(wbr))")) {
    if (/^\S{1,20}$/.test(code.textContent)) {
      code.style.whiteSpace = "nowrap";
      continue;
    }
    const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    const found = [];
    while (texts.nextNode()) found.push(texts.currentNode);
    for (const text of found) {
      const parts = text.data.split(/(?<=\w[._/:([=,@&?]+)(?=[\w'"])/);
      text.replaceWith(...parts.flatMap((part, n) => (n ? [document.createElement("wbr"), part] : [part])));
    }
  }
});
