//! Selects the fields that an update changes, as AIP-134 describes: those that `update_mask` names,
//! or without one those that are populated.

use prost_types::FieldMask;

use super::request::Fields;

/// The mask that names every field.
const ALL: &str = "*";

/// Maximum length of an unknown path that an error repeats.
const TOLD_MAX: usize = 40;

/// A field of a resource that an update can change.
pub(in crate::api) struct Field {
    pub path: &'static str,
    /// True if the request has a value for the field.
    pub populated: bool,
}

/// The fields to change.
pub(in crate::api) struct Mask(Vec<&'static str>);

impl Mask {
    /// Selects all fields.
    pub(in crate::api) fn all(known: &[Field]) -> Self {
        Self(known.iter().map(|field| field.path).collect())
    }

    /// Selects the fields that `update_mask` names, or the populated ones if it names none. Records
    /// a violation if it names an unknown one.
    pub(in crate::api) fn parse(
        fields: &mut Fields,
        mask: Option<FieldMask>,
        known: &[Field],
    ) -> Self {
        let paths = mask.unwrap_or_default().paths;
        if paths.is_empty() {
            let populated = known.iter().filter(|field| field.populated);
            return Self(populated.map(|field| field.path).collect());
        }
        let is_known = |path: &str| path == ALL || known.iter().any(|field| field.path == path);
        let unknown = paths.iter().enumerate();
        let unknown: Vec<_> = unknown.filter(|(_, path)| !is_known(path)).collect();
        if !unknown.is_empty() {
            let told: Vec<_> = unknown
                .iter()
                .take(8)
                .map(|(place, path)| shown(*place, path))
                .collect();
            let told = format!("has {}; it may have {}", told.join(", "), possible(known));
            fields.note("update_mask", told);
        }
        if paths.iter().any(|path| path == ALL) {
            return Self::all(known);
        }
        let named = known
            .iter()
            .filter(|field| paths.iter().any(|path| path == field.path));
        Self(named.map(|field| field.path).collect())
    }

    /// Records a violation if no field is selected.
    pub(in crate::api) fn require(&self, fields: &mut Fields, known: &[Field]) {
        if self.0.is_empty() {
            let told = format!(
                "must name the fields to change, because none is populated: {}",
                possible(known)
            );
            fields.note("update_mask", told);
        }
    }

    /// Returns `value` if the field is selected.
    pub(in crate::api) fn select<T>(&self, path: &str, value: impl FnOnce() -> T) -> Option<T> {
        self.0.contains(&path).then(value)
    }
}

/// Returns an unknown path as an error shows it. A path that does not look like one is not repeated,
/// because it may be a secret.
fn shown(place: usize, path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'.';
    if (1..=TOLD_MAX).contains(&path.len()) && path.bytes().all(plain) {
        format!("unknown path `{path}`")
    } else {
        format!("an unknown path at index {place}")
    }
}

fn possible(known: &[Field]) -> String {
    let paths = known.iter().map(|field| format!("`{}`", field.path));
    let paths: Vec<_> = paths.collect();
    format!("{}, or `*` for all", paths.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Field; 2] = [
        Field {
            path: "label",
            populated: false,
        },
        Field {
            path: "scopes",
            populated: true,
        },
    ];

    /// Returns the selected paths, and whether the mask is valid.
    fn selected(paths: &[&str]) -> (Vec<&'static str>, bool) {
        let mut fields = Fields::default();
        let paths = paths.iter().map(ToString::to_string).collect();
        let mask = Mask::parse(&mut fields, Some(FieldMask { paths }), &KNOWN);
        (mask.0, fields.check().is_ok())
    }

    #[test]
    fn a_mask_selects_what_it_names_or_else_what_is_populated() {
        assert_eq!(selected(&[]), (vec!["scopes"], true));
        assert_eq!(selected(&["label"]), (vec!["label"], true));
        assert_eq!(
            selected(&["scopes", "label"]),
            (vec!["label", "scopes"], true)
        );
        assert_eq!(selected(&["*"]), (vec!["label", "scopes"], true));
        assert!(!selected(&["scopes", "labels"]).1);
        assert!(!selected(&["scopes.0"]).1);
        assert!(!selected(&[""]).1);
    }

    #[test]
    fn a_path_that_may_be_a_secret_is_not_repeated() {
        assert_eq!(shown(0, "displayName"), "unknown path `displayName`");
        assert_eq!(shown(3, "gk_1pTg"), "an unknown path at index 3");
        assert_eq!(shown(1, &"a".repeat(41)), "an unknown path at index 1");
    }
}
