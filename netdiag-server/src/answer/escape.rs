//! Names, labels and DNS names come from strangers: they are shown as data, never obeyed by a terminal, Markdown or Mermaid.

use netdiag_common::escape::is_hidden;
pub use netdiag_common::escape::plain;
use serde_json::Value;

/// JSON as text, for terminals and logs: the same value, with what would be obeyed written as `\uXXXX` (RFC 8259 §7). Outside of its
/// strings JSON has only ASCII.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if is_obeyed(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(character);
        }
    }
    out
}

/// Every text of a JSON value that is read as it stands, line by line.
pub fn value(value: &mut Value) {
    match value {
        Value::String(text) if text.contains(is_obeyed) => *text = lines(text),
        Value::Array(values) => values.iter_mut().for_each(self::value),
        Value::Object(fields) => fields.values_mut().for_each(self::value),
        _ => {}
    }
}

fn is_obeyed(character: char) -> bool {
    is_hidden(character) && character != '\n'
}

/// [`plain`] for a text that has several lines by itself.
pub fn lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// For running Markdown text (CommonMark, GitHub): additionally, characters with a meaning are escaped with a backslash.
pub fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in plain(text).chars() {
        match character {
            // Entities, because backslashes before < and & do not hold in every renderer.
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            // A mention or an automatic link needs the bare character.
            '@' => out.push_str("&#64;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '$' => {
                out.push('\\');
                out.push(character);
            }
            _ => out.push(character),
        }
    }
    // Bare addresses become links in GitHub's dialect; an entity in place of the colon stops that.
    out.replace("://", "&#58;//").replace("www.", "www&#46;")
}

/// For a code span or block: the text as it is, in a fence longer than any run of backticks inside.
pub fn code_span(text: &str) -> String {
    let text = plain(text);
    let fence = "`".repeat(longest_run(&text) + 1);
    // CommonMark strips one space on each side, which a text that starts or ends with a backtick needs.
    if text.starts_with('`') || text.ends_with('`') {
        format!("{fence} {text} {fence}")
    } else {
        format!("{fence}{text}{fence}")
    }
}

/// For a quoted Mermaid label: everything but letters, digits and a few harmless signs becomes an entity.
pub fn mermaid(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in plain(text).chars() {
        match character {
            ' ' | '-' | '.' | ':' | '/' | '_' | ',' => out.push(character),
            letter if letter.is_alphanumeric() => out.push(letter),
            // Mermaid writes entities as #NUMBER; and takes them inside quoted labels.
            other => out.push_str(&format!("#{};", u32::from(other))),
        }
    }
    out
}

fn longest_run(text: &str) -> usize {
    let mut longest = 0;
    let mut run = 0;
    for character in text.chars() {
        run = if character == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain's name that would change a terminal's title, and the order of what follows.
    const HOSTILE: &str = "web\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}gnp\u{e0001}";

    #[test]
    fn json_stays_the_same_value_and_has_nothing_to_obey() {
        let before = serde_json::json!({"chain": HOSTILE, "lines": "a\nb", "name": "ünë"});
        let text = json(&serde_json::to_string_pretty(&before).unwrap());
        assert!(!text.contains(is_obeyed), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), before);
        assert!(text.contains("ünë") && text.contains("\\udb40\\udc01"), "{text}");
    }

    #[test]
    fn values_that_are_read_as_they_stand_are_escaped_line_by_line() {
        let mut content = serde_json::json!({"steps": [{"what": HOSTILE}], "fix": "first\nsecond", "count": 7});
        value(&mut content);
        assert_eq!(content["fix"], "first\nsecond");
        assert_eq!(content["steps"][0]["what"], plain(HOSTILE));
        assert_eq!(content["count"], 7);
    }

    #[test]
    fn markdown_shows_markup_instead_of_using_it() {
        assert_eq!(markdown("<img src=x> [a](http://b) *c*"), "&lt;img src=x&gt; \\[a\\](http&#58;//b) \\*c\\*");
    }

    #[test]
    fn code_cannot_be_left() {
        assert_eq!(code_span("a``b"), "```a``b```");
        assert_eq!(code_span("`a"), "`` `a ``");
    }

    #[test]
    fn mermaid_labels_cannot_end_their_quotes() {
        assert_eq!(mermaid("a\"] --> b"), "a#34;#93; --#62; b");
    }
}
