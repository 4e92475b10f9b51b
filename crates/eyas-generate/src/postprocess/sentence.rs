//! Where sentences and list items end.

/// Marks that end a sentence where a space follows.
const TERMINATORS: [char; 4] = ['.', '!', '?', '…'];
/// Marks that end a sentence whatever follows.
const FULL_WIDTH: [char; 3] = ['。', '！', '？'];
/// What may stand between such a mark and the end.
const CLOSERS: [char; 14] = ['"', '\'', '”', '’', '»', ')', ']', '}', '」', '』', '）', '*', '_', '`'];
/// Words whose full stop ends no sentence. Others, as "etc.", end one unless a small letter follows.
const ABBREVIATIONS: [&str; 20] = [
    "dr", "mr", "mrs", "ms", "prof", "st", "rev", "e.g", "i.e", "eg", "ie", "cf", "vs", "viz", "approx",
    "fig", "vol", "dept", "incl", "esp",
];
/// A list item of more words is taken for a sentence that wants an end.
const SHORT_ITEM: usize = 10;

/// The places where a sentence or a short list item ends, in order.
///
/// A place stays one when the text is cut there, and when it goes on, as long as something other than space follows.
pub(super) fn ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut places: Vec<usize> = Vec::new();
    let mut characters = text.char_indices().peekable();
    while let Some((start, character)) = characters.next() {
        let full_width = FULL_WIDTH.contains(&character);
        if !full_width && !TERMINATORS.contains(&character) {
            continue;
        }
        let mut end = start + character.len_utf8();
        let mut is_single = character == '.';
        let mut ends_anyway = full_width;
        while let Some(&(at, next)) = characters.peek() {
            let more = TERMINATORS.contains(&next) || FULL_WIDTH.contains(&next);
            if !more && !CLOSERS.contains(&next) {
                break;
            }
            is_single &= !more;
            ends_anyway |= FULL_WIDTH.contains(&next);
            end = at + next.len_utf8();
            characters.next();
        }
        let ends_here = ends_anyway || followed_by_end(&text[end..]);
        if ends_here && !(is_single && is_no_end(text, start, end)) && !is_bare_item(text, start, end) {
            places.push(end);
        }
    }
    places.extend(item_ends(text));
    places.sort_unstable();
    places.dedup();
    places.into_iter()
}

/// Whether what follows a mark lets a sentence end there: nothing, a new line, or a space and no small letter.
fn followed_by_end(rest: &str) -> bool {
    let trimmed = rest.trim_start();
    match trimmed.chars().next() {
        None => true,
        Some(next) => {
            trimmed.len() < rest.len() && (gap(rest, trimmed).contains('\n') || !next.is_lowercase())
        }
    }
}

fn gap<'a>(rest: &'a str, trimmed: &str) -> &'a str {
    &rest[..rest.len() - trimmed.len()]
}

/// Whether the line of `start` is a list marker and nothing up to `end` but marks.
fn is_bare_item(text: &str, start: usize, end: usize) -> bool {
    let line = text[..start].rfind('\n').map_or(0, |at| at + 1);
    list_marker(&text[line..end]).is_some_and(|marker| !has_words(&text[line + marker..end]))
}

/// Whether the full stop at `stop` belongs to an abbreviation, an initial or a list number.
fn is_no_end(text: &str, stop: usize, end: usize) -> bool {
    let before = &text[..stop];
    let word_start = before
        .rfind(|c: char| !(c.is_alphanumeric() || c == '.'))
        .map_or(0, |at| at + before[at..].chars().next().map_or(0, char::len_utf8));
    let word = &before[word_start..];
    if ABBREVIATIONS.iter().any(|abbreviation| word.eq_ignore_ascii_case(abbreviation)) {
        return true;
    }
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    if list_marker(&text[line_start..]).is_some_and(|marker| line_start + marker > stop) {
        return true;
    }
    if is_list_number(word) && follows_sentence(&before[..word_start]) {
        return true;
    }
    let ahead = before[..word_start].trim_end();
    // "Martin L. King": an initial between a name and what may be another.
    let rest = &text[end..];
    let next = rest.trim_start();
    let mut letters = word.chars();
    let is_initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none();
    is_initial
        && !gap(rest, next).contains('\n')
        && next.starts_with(char::is_uppercase)
        && ahead.rsplit(char::is_whitespace).next().is_some_and(|word| word.starts_with(char::is_uppercase))
}

/// Whether a text is a sentence, by its last mark, and space after it: where a number of a list may stand.
fn follows_sentence(text: &str) -> bool {
    let sentence = text.trim_end();
    let mark = sentence.trim_end_matches(CLOSERS).chars().next_back();
    sentence.len() < text.len()
        && mark.is_some_and(|mark| TERMINATORS.contains(&mark) || FULL_WIDTH.contains(&mark))
}

fn is_list_number(word: &str) -> bool {
    (1..=2).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where a sentence ends that only a list number follows: "Sleep well. 3."
pub(super) fn stray_number(text: &str) -> Option<usize> {
    let number = text.strip_suffix(['.', ')'])?;
    let before = number.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_stray = is_list_number(&number[before.len()..]) && follows_sentence(before);
    is_stray.then_some(before.trim_end().len())
}

/// Bytes of the list marker at the start of a line, with the spaces and emphasis around it: "2.", "3)", "a.", "-", "•",
/// "**4.". Marks of emphasis or a heading alone count as well.
pub(super) fn list_marker(line: &str) -> Option<usize> {
    let markup = |text: &str| {
        text.len() - text.trim_start_matches([' ', '\t', '*', '_', '#', '>', '-', '•', '–']).len()
    };
    let lead = markup(line);
    let rest = &line[lead..];
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let label = match digits {
        0 if rest.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) => 1,
        digits => digits,
    };
    let numbered = (1..=3).contains(&label)
        && rest[label..].starts_with(['.', ')'])
        && rest[label + 1..]
            .chars()
            .next()
            .is_none_or(|next| next.is_whitespace() || next == '*' || next == '_');
    if numbered {
        let after = lead + label + 1;
        return Some(after + markup(&line[after..]));
    }
    let is_bullet = ['-', '•', '–', '*', '#', '>', '_'].iter().any(|mark| line[..lead].contains(*mark))
        && (rest.is_empty() || line[..lead].ends_with([' ', '\t']));
    is_bullet.then_some(lead)
}

/// Whether there is a letter or a digit.
pub(super) fn has_words(text: &str) -> bool {
    text.contains(char::is_alphanumeric)
}

/// Ends of short list items without a full stop that follow another such item: a list written in that style.
fn item_ends(text: &str) -> Vec<usize> {
    let mut places = Vec::new();
    let mut follows_item = false;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end();
        let end = start + content.len();
        start += line.len();
        if content.is_empty() {
            continue;
        }
        let item = list_marker(content).map(|marker| &content[marker..]).filter(|item| {
            has_words(item)
                && stray_number(content).is_none()
                && !item
                    .trim_end_matches(CLOSERS)
                    .ends_with(['.', '!', '?', '…', '。', '！', '？', ':', ',', ';', '：', '，'])
                && item.split_whitespace().count() <= SHORT_ITEM
        });
        if item.is_some() && follows_item {
            places.push(end);
        }
        follows_item = item.is_some();
    }
    places
}

/// The places where a sentence or a line begins.
pub(super) fn sentence_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    let skip = |at: usize| at + (text[at..].len() - text[at..].trim_start().len());
    let mut starts: Vec<usize> = ends(text).map(skip).collect();
    starts.extend(text.match_indices('\n').map(|(at, _)| skip(at + 1)));
    starts.push(0);
    starts.retain(|&start| start < text.len());
    starts.sort_unstable();
    starts.dedup();
    starts.into_iter()
}
