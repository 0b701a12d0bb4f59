//! What is wrong with a request: one violation a bad field, all told at once.

/// A field that cannot be accepted. The text never repeats the value: it may be a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The path of the field, e.g. `scopes[3]`.
    pub field: String,
    /// What would be right.
    pub description: String,
}

impl Violation {
    /// A violation of `field`, described by what would be right.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }
}
