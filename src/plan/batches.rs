//! Matrices of one shape that a device decomposes together: tasks of several tensors, layers as a rule.

use super::TensorPlan;
use super::graph::StepId;
use crate::ops::Program;

/// Tensors whose merges are one step of a lane. Which go together follows from their shapes and from the device's memory:
/// see `engine::lanes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The tensors, in the plan's order.
    pub tensors: Vec<usize>,
    /// Their merging steps. The first stands for all; the others come after it and find their work done.
    pub steps: Vec<StepId>,
}

/// Tensors that can be decomposed together, in the plan's order: of one shape and rule, from as many models and sources. Those
/// that are not `fit` for a device, and what is no matrix, are left out.
pub fn alike(tensors: &[TensorPlan], fit: &[bool]) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = Vec::new();
    let key = |t: &TensorPlan| match &t.program {
        Program::LowRank(work) => Some((t.matrix(), work.rule, t.models.len(), t.reads().count())),
        _ => None,
    };
    for (i, (tensor, _)) in tensors.iter().zip(fit).enumerate().filter(|(_, (_, fit))| **fit) {
        let Some(wanted) = key(tensor) else { continue };
        match all.iter_mut().find(|group| group.first().and_then(|t| key(&tensors[*t])) == Some(wanted)) {
            Some(group) => group.push(i),
            None => all.push(vec![i]),
        }
    }
    all
}

/// Cuts a list into as few parts of at most `most` as there can be, of nearly one length, in order.
pub fn cut(list: &[usize], most: usize) -> impl Iterator<Item = &[usize]> {
    let parts = list.len().div_ceil(most.max(1)).max(1);
    let (least, longer) = (list.len() / parts, list.len() % parts);
    (0..parts).scan(0, move |at, part| {
        let begin = *at;
        *at += least + usize::from(part < longer);
        Some(&list[begin..*at])
    })
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn parts_are_few_and_nearly_of_one_length() {
        let list: Vec<usize> = (0..17).collect();
        for (most, lengths) in
            [(100, vec![17]), (17, vec![17]), (16, vec![9, 8]), (5, vec![5, 4, 4, 4]), (1, vec![1; 17])]
        {
            let parts: Vec<&[usize]> = cut(&list, most).collect();
            assert_eq!(parts.concat(), list);
            assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), lengths, "at most {most}");
        }
    }
}
