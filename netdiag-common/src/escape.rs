//! Names come from strangers: nf_tables takes any bytes for those of chains and sets. They are shown as data, never obeyed.

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

/// Control characters, and format characters that change the order of what follows or show nothing (Unicode TR36, TR9).
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_get_no_control_character_and_no_reordering() {
        let hostile = "web\u{1b}]0;owned\u{7}\u{202e}gnp\nnext";
        assert_eq!(plain(hostile), "web\\u{1b}]0;owned\\u{7}\\u{202e}gnp\\nnext");
    }
}
