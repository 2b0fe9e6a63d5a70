//! Configuration files with `{{holes}}`: plain text stays readable, a forgotten hole is an error.

use anyhow::{Result, bail};

/// Replaces every `{{name}}` of `text`.
pub(crate) fn fill(text: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut filled = text.to_owned();
    for (name, value) in values {
        filled = filled.replace(&format!("{{{{{name}}}}}"), value);
    }
    if let Some((_, rest)) = filled.split_once("{{") {
        bail!("template has no value for {{{{{}", rest.lines().next().unwrap_or_default());
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_is_filled() {
        assert_eq!(fill("a: {{x}}-{{x}}\nb: {{y}}\n", &[("x", "1"), ("y", "2")]).unwrap(), "a: 1-1\nb: 2\n");
    }

    #[test]
    fn a_forgotten_hole_is_named() {
        assert_eq!(fill("a: {{x}}", &[]).unwrap_err().to_string(), "template has no value for {{x}}");
    }
}
