//! The nearest known name to one that a user mistyped.

/// Names longer than this are not compared: the distance costs time in the product of both lengths.
const LONGEST_BYTES: usize = 64;

/// The candidate that `word` most likely stands for, if any is near.
///
/// Case and `-` for `_` do not count. Near is an edit distance of at most a third of the word, or one name holding
/// the other (`stages` for `task_vector_stages`). Among equals the first candidate wins.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.is_empty() || word.len() > LONGEST_BYTES {
        return None;
    }
    let word = plain(word);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        if candidate.len() > LONGEST_BYTES {
            continue;
        }
        let name = plain(candidate);
        let edits = strsim::damerau_levenshtein(&word, &name);
        let holds = word.len().min(name.len()) >= 4 && (word.contains(&name) || name.contains(&word));
        let near = edits <= (word.chars().count() / 3).max(1) && edits < word.chars().count();
        // A name that merely holds the word ranks behind every name within typing distance.
        let rank = if near { edits } else { LONGEST_BYTES + edits };
        if (near || holds) && best.is_none_or(|(least, _)| rank < least) {
            best = Some((rank, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

fn plain(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::nearest;

    const KEYS: [&str; 4] = ["merge_method", "base_model", "models", "task_vector_stages"];

    #[test]
    fn a_typing_slip_finds_its_name() {
        assert_eq!(nearest("lamda", ["weight", "lambda"]), Some("lambda"));
        assert_eq!(nearest("merge-Method", KEYS), Some("merge_method"));
        assert_eq!(nearest("modles", KEYS), Some("models"));
    }

    #[test]
    fn a_part_of_a_name_finds_it_when_nothing_is_nearer() {
        assert_eq!(nearest("stages", KEYS), Some("task_vector_stages"));
        assert_eq!(nearest("model", KEYS), Some("models"));
    }

    #[test]
    fn a_word_like_none_of_them_finds_nothing() {
        assert_eq!(nearest("colour", KEYS), None);
        assert_eq!(nearest("x", KEYS), None);
        assert_eq!(nearest("", KEYS), None);
        assert_eq!(nearest(&"models".repeat(20), KEYS), None);
    }
}
