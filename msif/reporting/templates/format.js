// Numbers as people read them.

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
}

const count = (value) => value.toLocaleString("en");

function percent(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return (100 * value).toFixed(digits) + " %";
}

// A part in thousandths of the score, as a signed percentage.
function share(permille, digits = 0) {
  const text = (permille / 10).toFixed(digits);
  if (!/[1-9]/.test(text)) return "0 %";
  return (permille > 0 ? "+" : "−") + text.replace("-", "") + " %";
}

function probability(value) {
  if (value >= 0.9995) return "≈ 1";
  return value >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}

const fieldText = (value) => (Array.isArray(value) ? value.join(", ") : String(value ?? "–"));
