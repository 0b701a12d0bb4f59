//! Names: texts that people compare by eye, so every character must be visible.
//!
//! Two names that look the same must be the same. Therefore a name has no control characters and no
//! invisible characters. Look-alike letters of different scripts are not compared.

/// The maximum length of a name in bytes.
pub const NAME_MAX: usize = 255;

/// Characters that are invisible or that reorder adjacent text: Unicode's
/// `Default_Ignorable_Code_Point` (DerivedCoreProperties.txt), the line and paragraph separators,
/// and the annotation characters. Ranges are inclusive and sorted.
const INVISIBLE: [(char, char); 17] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Returns the first invisible character: a control character, or one of [`INVISIBLE`].
#[must_use]
pub fn find_invisible(text: &str) -> Option<char> {
    text.chars().find(|&c| c.is_control() || is_ignorable(c))
}

/// Returns the first character that is invalid in multi-line text: a control character other than a
/// line break or a tab, an unusual line separator, or a character that reorders the text after it.
/// Joiners and soft hyphens are allowed, because ordinary text contains them.
#[must_use]
pub fn find_misleading(text: &str) -> Option<char> {
    text.chars().find(|&c| match c {
        '\n' | '\r' | '\t' => false,
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        _ => c.is_control(),
    })
}

/// Returns whether the text is a valid name: 1 to [`NAME_MAX`] bytes, every character visible.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len()) && find_invisible(text).is_none()
}

fn is_ignorable(c: char) -> bool {
    // Most names are ASCII, which has no such character.
    // Spaces other than the usual one look like it or like nothing, and so does U+2800.
    !c.is_ascii()
        && (c.is_whitespace()
            || c == '\u{2800}'
            || INVISIBLE.iter().any(|&(from, to)| (from..=to).contains(&c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_invisible_character_is_found_wherever_it_stands() {
        for c in [
            '\0',
            '\t',
            '\n',
            '\u{7f}',
            '\u{85}',
            '\u{ad}',
            '\u{61c}',
            '\u{180e}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            for text in [
                format!("{c}alice"),
                format!("al{c}ice"),
                format!("alice{c}"),
            ] {
                assert_eq!(find_invisible(&text), Some(c), "U+{:04X}", u32::from(c));
                assert!(!is_name(&text));
            }
        }
    }

    #[test]
    fn what_people_write_is_a_name() {
        for name in [
            "alice",
            "spiffe://example.org/orders",
            "Łukasz Źdźbło",
            "王小明",
            "مريم",
            "🔑 main",
        ] {
            assert!(is_name(name), "{name}");
        }
        assert!(!is_name(""));
        assert!(!is_name(&"a".repeat(NAME_MAX + 1)));
    }

    #[test]
    fn a_text_may_have_lines_and_joiners_and_nothing_that_reorders_it() {
        assert_eq!(
            find_misleading("a\r\n\tb می\u{200c}خواهم 👩\u{200d}💻 so\u{ad}ft"),
            None
        );
        for c in [
            '\0', '\u{1b}', '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}', '\u{2069}',
        ] {
            assert_eq!(find_misleading(&format!("a{c}")), Some(c));
        }
    }
}
