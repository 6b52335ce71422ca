//! "Did you mean": the known word nearest to an unknown one.

/// The candidate with the fewest edits, or nothing when even that has little in common with `word`.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let word = plain(word);
    candidates
        .into_iter()
        .map(|candidate| (edits(&word, &plain(candidate)), candidate))
        .min()
        .filter(|(edits, candidate)| *edits <= candidate.len().max(word.len()) / 2)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word_is_found_across_spelling_and_case() {
        let known = ["log_path", "log_directory", "labels", "linux"];
        assert_eq!(nearest("logpaht", known), Some("log_path"));
        assert_eq!(nearest("LogDirectory", known), Some("log_directory"));
        assert_eq!(nearest("label", known), Some("labels"));
        assert_eq!(nearest("zzzzzz", known), None);
    }
}
