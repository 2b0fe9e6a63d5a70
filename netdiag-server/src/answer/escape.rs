//! Names, labels and DNS names come from strangers: they are shown as data, never obeyed by a terminal, Markdown or Mermaid.

/// For terminals and logs: control characters and those that reorder or hide text are written as `\u{…}`.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            hidden if is_hidden(hidden) => out.extend(hidden.escape_unicode()),
            visible => out.push(visible),
        }
    }
    out
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

/// Control characters, and format characters that change the order of what follows or show nothing (Unicode TR36, TR9).
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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

    #[test]
    fn terminals_get_no_control_character_and_no_reordering() {
        let hostile = "web\u{1b}]0;owned\u{7}\u{202e}gnp\nnext";
        assert_eq!(plain(hostile), "web\\u{1b}]0;owned\\u{7}\\u{202e}gnp\\nnext");
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
