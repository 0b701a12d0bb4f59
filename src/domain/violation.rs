//! Violations of a request: one for each invalid field, all reported at once.

/// An invalid field. The text never repeats the value, because it may be a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The path of the field, e.g. `scopes[3]`.
    pub field: String,
    /// A description of a valid value.
    pub description: String,
}

impl Violation {
    /// Creates a violation of `field`; `description` describes a valid value.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }
}
