//! Text in columns for a terminal.

use std::fmt::Write;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Between the columns.
const GAP: &str = " │ ";
/// Columns narrower than this are set one below the other.
const NARROWEST: usize = 24;

/// A heading over two texts side by side, or one below the other.
pub(super) fn render(heading: &str, titles: [&str; 2], texts: [String; 2], width: usize) -> String {
    let column = width.saturating_sub(GAP.width()) / 2;
    let mut out = String::new();
    for line in wrap(heading, width.max(1)) {
        let _ = writeln!(out, "{line}");
    }
    if column < NARROWEST {
        for (title, text) in titles.iter().zip(&texts) {
            let _ = writeln!(out, "\n{title}");
            let _ = writeln!(out, "{}", "─".repeat(title.width()));
            for line in wrap(text, width.max(1)) {
                let _ = writeln!(out, "{line}");
            }
        }
        return out;
    }
    let [left, right] = texts.map(|text| wrap(&text, column));
    row(&mut out, titles[0], titles[1], column);
    let _ = writeln!(out, "{}", ["─".repeat(column), "─".repeat(column)].join("─┼─"));
    for i in 0..left.len().max(right.len()) {
        let line = |lines: &[String]| lines.get(i).cloned().unwrap_or_default();
        row(&mut out, &line(&left), &line(&right), column);
    }
    out
}

fn row(out: &mut String, left: &str, right: &str, column: usize) {
    let padding = " ".repeat(column.saturating_sub(left.width()));
    let _ = writeln!(out, "{}", format!("{left}{padding}{GAP}{right}").trim_end());
}

/// Breaks a text into lines of at most `width` columns (at least 1): between words, around wide characters, and inside
/// a word only where it is longer than a line. The start of a line of the text keeps its indentation.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let paragraph = clean(paragraph.trim_end());
        let mut line = String::new();
        let mut used = 0;
        for piece in pieces(&paragraph) {
            let columns = piece.trim_end().width();
            if used + columns > width && used > 0 {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
                used = 0;
            }
            if columns <= width {
                // A space that ends a full line goes with the line's end.
                line.push_str(piece);
                used += piece.width();
                continue;
            }
            for character in piece.chars() {
                let columns = character.width().unwrap_or(0);
                if used + columns > width && used > 0 {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                }
                line.push(character);
                used += columns;
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// Control characters would move the cursor or worse: a tab becomes spaces, others go.
fn clean(line: &str) -> String {
    line.replace('\t', "    ").chars().filter(|character| !character.is_control()).collect()
}

/// Cuts a line after runs of spaces and before and after wide characters, which stand without spaces.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let mut previous: Option<char> = None;
        let mut has_word = false;
        let end = rest.char_indices().find_map(|(at, character)| {
            let before = previous.replace(character)?;
            has_word |= before != ' ';
            let after_spaces = before == ' ' && character != ' ' && has_word;
            let around_wide = before != ' ' && character != ' ' && (is_wide(before) || is_wide(character));
            (after_spaces || around_wide && !clings(character)).then_some(at)
        });
        let (piece, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

fn is_wide(character: char) -> bool {
    character.width() == Some(2)
}

/// Punctuation that does not begin a line, and marks that belong to the character before.
fn clings(character: char) -> bool {
    character.width() == Some(0) || "，。、；：！？）」』》〉…,.;:!?)\u{fe0f}".contains(character)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("Rest, walk and talk to a friend.", 12), ["Rest, walk", "and talk to", "a friend."]);
        assert_eq!(wrap("  a bb\n\nccc", 4), ["  a", "bb", "", "ccc"]);
    }

    #[test]
    fn long_words_and_wide_characters_are_measured_in_columns() {
        assert_eq!(wrap("abcdefgh i", 3), ["abc", "def", "gh", "i"]);
        assert_eq!(wrap("好好休息。", 4), ["好好", "休", "息。"]);
        assert_eq!(wrap("a 😊😊", 4), ["a 😊", "😊"]);
    }

    #[test]
    fn columns_stand_beside_each_other() {
        let texts = ["Short.".to_owned(), "A longer answer that needs a second line.".to_owned()];
        let text = render("Why?", ["base", "tuned"], texts, 55);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Why?");
        assert_eq!(lines[1], "base                       │ tuned");
        assert_eq!(lines[3], "Short.                     │ A longer answer that needs");
        assert_eq!(lines[4], "                           │ a second line.");
        assert!(lines.iter().all(|line| line.width() <= 55));
    }

    #[test]
    fn a_narrow_terminal_gets_one_after_the_other() {
        let text = render("Why?", ["base", "tuned"], ["One.".into(), "Two.".into()], 30);
        assert_eq!(text, "Why?\n\nbase\n────\nOne.\n\ntuned\n─────\nTwo.\n");
    }

    proptest! {
        #[test]
        fn no_line_is_too_wide_and_no_word_is_lost(text in "[a-z好😊，. \n]{0,80}", width in 2usize..20) {
            let lines = wrap(&text, width);
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
            for line in &lines {
                prop_assert!(line.width() <= width, "{:?}", line);
            }
        }
    }
}
