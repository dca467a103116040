// Texts whose contrast with what lies behind them is below WCAG's 4.5 : 1 (3 : 1 when large).
() => {
  const numbers = colour => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const light = channel => {
    const share = channel / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const over = ([r, g, b, a = 1], back) => [r, g, b].map((c, i) => a * c + (1 - a) * back[i]);

  function backdrop(node) {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length && colour[3] !== 0) layers.push(colour);
      if (colour.length && colour[3] === undefined) break;
    }
    return layers.reverse().reduce((back, layer) => over(layer, back), [255, 255, 255]);
  }

  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName)) continue;
    const style = getComputedStyle(node), back = backdrop(node);
    const colour = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const pair = [luminance(over(numbers(colour), back)), luminance(back)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    const needed = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (ratio < needed) found.push(`${ratio.toFixed(2)}: ${text.slice(0, 60)}`);
  }
  return JSON.stringify(found);
}
