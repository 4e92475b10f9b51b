//! What became of every row, in figures.

use std::fmt;

use crate::anonymise::AnonymiseCounts;
use crate::clean::CleanCounts;

/// Counts from reading to encoding. Printed, it is a line a subject, without the subjects that are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows read from the file.
    pub read: u64,
    /// Rows left out because they could not be read, where the caller allows that.
    pub bad: u64,
    /// Rows left out because their text was empty, where the caller allows that.
    pub empty: u64,
    /// Rows equal to an earlier one.
    pub duplicates: u64,
    /// Whether the duplicates were left out.
    pub duplicates_dropped: bool,
    /// Characters cleaned away.
    pub cleaned: CleanCounts,
    /// Personal data replaced.
    pub anonymised: AnonymiseCounts,
    /// Rows turned into examples.
    pub kept: u64,
    /// Rows cut to `max_length`; they are kept.
    pub truncated: u64,
    /// Tokens lost by cutting.
    pub tokens_lost: u64,
    /// Rows left out because they were longer than `max_length`.
    pub too_long: u64,
    /// Rows left out because nothing in them is to be learned, such as a prompt that fills `max_length`.
    pub without_target: u64,
    /// Tokens of the kept rows.
    pub tokens: u64,
    /// Tokens of the kept rows whose prediction counts.
    pub target_tokens: u64,
    /// The longest kept row, in tokens.
    pub longest: u64,
    /// The longest row before cutting, in tokens.
    pub longest_uncut: u64,
}

impl Report {
    /// Rows left out, for any reason.
    pub fn left_out(&self) -> u64 {
        let duplicates = if self.duplicates_dropped { self.duplicates } else { 0 };
        self.bad + self.empty + self.too_long + self.without_target + duplicates
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows        {} read, {} kept", self.read, self.kept)?;
        for (count, what) in [
            (self.bad, "unreadable"),
            (self.empty, "empty"),
            (self.too_long, "too long"),
            (self.without_target, "with nothing to learn"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        if self.duplicates > 0 {
            let fate = if self.duplicates_dropped { "left out" } else { "kept" };
            write!(f, ", {} duplicates ({fate})", self.duplicates)?;
        }
        if self.tokens > 0 {
            let (tokens, kept) = (self.tokens, self.kept);
            write!(f, "\ntokens      {tokens}, {} of them targets", self.target_tokens)?;
            write!(f, "; mean {:.0}, longest {}", tokens as f64 / kept.max(1) as f64, self.longest)?;
        }
        if self.truncated > 0 {
            let cut = (self.truncated, self.tokens_lost, self.longest_uncut);
            write!(f, "\ntruncated   {} rows, {} tokens lost; the longest row has {}", cut.0, cut.1, cut.2)?;
        }
        if self.cleaned.total() > 0 {
            write!(f, "\ncleaned     {}", self.cleaned)?;
        }
        if self.anonymised.total() > 0 {
            write!(f, "\nanonymised  {}", self.anonymised)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_is_told() {
        let report = Report {
            read: 3,
            kept: 2,
            empty: 1,
            tokens: 20,
            target_tokens: 18,
            longest: 12,
            ..Default::default()
        };
        let expected =
            "rows        3 read, 2 kept, 1 empty\ntokens      20, 18 of them targets; mean 10, longest 12";
        assert_eq!(report.to_string(), expected);
        assert_eq!(report.left_out(), 1);
    }
}
