//! Names: texts that people compare by eye, and that must therefore show all that they hold.
//!
//! Two names that look the same must be the same. So a name has no control character and none that
//! shows nothing. Letters that look alike in different scripts are not compared.

/// The most bytes that a name may have.
pub const NAME_MAX: usize = 255;

/// Characters that show nothing or reorder what is beside them: Unicode's
/// `Default_Ignorable_Code_Point` (DerivedCoreProperties.txt), the line and paragraph separators, and
/// the annotation characters. Ranges are inclusive and sorted.
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

/// Returns the first character that shows nothing: a control character, or one of [`INVISIBLE`].
#[must_use]
pub fn find_invisible(text: &str) -> Option<char> {
    text.chars().find(|&c| c.is_control() || is_ignorable(c))
}

/// Returns the first character that has no place in a text of several lines: a control character
/// other than a line break or a tab, a separator that is no usual line break, or one that reorders
/// the text after it. Joiners and soft hyphens are part of how people write, and are allowed.
#[must_use]
pub fn find_misleading(text: &str) -> Option<char> {
    text.chars().find(|&c| match c {
        '\n' | '\r' | '\t' => false,
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        _ => c.is_control(),
    })
}

/// Whether this can be a name: 1 to [`NAME_MAX`] bytes, each character of which shows.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len()) && find_invisible(text).is_none()
}

fn is_ignorable(c: char) -> bool {
    // Most names are ASCII, which has none.
    !c.is_ascii() && INVISIBLE.iter().any(|&(from, to)| (from..=to).contains(&c))
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
