//! Answers for readers with little room: a JSON value made to fit a number of bytes, which says what was left out.

use serde_json::Value;

/// Characters of one string once lists alone no longer help.
const MAX_STRING: usize = 400;

/// Shortens the largest lists, then long strings, until `value` fits. Returns a sentence with what was left out and
/// `narrow`, the way to get it; empty when everything fitted.
pub fn fit(value: &mut Value, max_bytes: usize, narrow: &str) -> String {
    let mut left_out: Vec<(String, usize)> = Vec::new();
    while size(value) > max_bytes {
        let Some((pointer, length)) = largest_list(value) else {
            cut_strings(value);
            break;
        };
        let Some(Value::Array(list)) = value.pointer_mut(&pointer) else { break };
        list.truncate(length / 2);
        let name = pointer.rsplit('/').next().unwrap_or_default().to_owned();
        let lost = length - length / 2;
        match left_out.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += lost,
            None => left_out.push((name, lost)),
        }
    }
    if left_out.is_empty() {
        return String::new();
    }
    let words: Vec<String> = left_out.iter().map(|(name, count)| format!("{count} {name}")).collect();
    format!("truncated by {}; {narrow}", words.join(", "))
}

/// Bytes of the value as JSON without spaces; escapes are not counted, so callers leave a margin.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(number) => number.to_string().len(),
        Value::String(text) => text.len() + 2,
        Value::Array(list) => list.iter().map(|entry| size(entry) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(key, entry)| key.len() + 4 + size(entry)).sum::<usize>() + 2,
    }
}

/// JSON pointer and length of the list with the most bytes that has more than one entry.
fn largest_list(value: &Value) -> Option<(String, usize)> {
    fn walk(value: &Value, pointer: &str, best: &mut Option<(usize, String, usize)>) {
        match value {
            Value::Array(list) => {
                let bytes = size(value);
                if list.len() > 1 && best.as_ref().is_none_or(|(most, _, _)| bytes > *most) {
                    *best = Some((bytes, pointer.to_owned(), list.len()));
                }
                for (index, entry) in list.iter().enumerate() {
                    walk(entry, &format!("{pointer}/{index}"), best);
                }
            }
            Value::Object(map) => {
                for (key, entry) in map {
                    walk(entry, &format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")), best);
                }
            }
            _ => {}
        }
    }
    let mut best = None;
    walk(value, "", &mut best);
    best.map(|(_, pointer, length)| (pointer, length))
}

fn cut_strings(value: &mut Value) {
    match value {
        Value::String(text) if text.chars().count() > MAX_STRING => {
            let more = text.chars().count() - MAX_STRING;
            *text = format!("{}… ({more} characters more)", text.chars().take(MAX_STRING).collect::<String>());
        }
        Value::Array(list) => list.iter_mut().for_each(cut_strings),
        Value::Object(map) => map.values_mut().for_each(cut_strings),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_fits_is_left_alone() {
        let mut value = json!({"steps": [1, 2, 3]});
        assert_eq!(fit(&mut value, 1_000, "ask less"), "");
        assert_eq!(value, json!({"steps": [1, 2, 3]}));
    }

    #[test]
    fn the_largest_list_is_cut_first_and_counted() {
        let steps: Vec<String> = (0..100).map(|number| format!("step number {number}")).collect();
        let mut value = json!({"causes": ["a", "b"], "steps": steps});
        let sentence = fit(&mut value, 600, "narrow with --from");
        assert_eq!(sentence, "truncated by 75 steps; narrow with --from");
        assert_eq!(value["causes"], json!(["a", "b"]));
        assert!(size(&value) <= 600);
    }

    #[test]
    fn one_endless_string_is_cut_too() {
        let mut value = json!({"claim": "x".repeat(10_000)});
        fit(&mut value, 1_000, "");
        assert!(size(&value) <= 1_000);
    }
}
