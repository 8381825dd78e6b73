//! Text of others in our sentences.

/// Most bytes of a wrong word that are repeated.
const MOST: usize = 80;

/// Whether `c` could make one line of a log look like two.
pub(super) fn breaks_lines(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// `text` as it may stand in a sentence: on one line, and not longer than is needed to know it again.
pub(crate) fn shown(text: &str) -> String {
    shortened(text, MOST)
}

/// The same with another length.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if shown.len() + c.len_utf8() > most {
            shown.push('…');
            break;
        }
        match breaks_lines(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_short_and_on_its_line() {
        assert_eq!(shown("tap:vm1 ä"), "tap:vm1 ä");
        assert_eq!(shown("a\nb\u{2028}"), "a\\nb\\u{2028}");
        assert_eq!(shown(&"ä".repeat(100)), format!("{}…", "ä".repeat(40)));
    }
}
