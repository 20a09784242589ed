//! Whose call runs next: connections take turns, however many calls each has.

use std::collections::VecDeque;

/// Tasks that can go on, by the connection they came from.
#[derive(Debug, Default)]
pub(super) struct RunQueue {
    /// Connections with tasks, in the order of their turns.
    order: VecDeque<usize>,
    /// Tasks of each connection, by its place in the loop.
    tasks: Vec<VecDeque<usize>>,
}

impl RunQueue {
    pub(super) fn push(&mut self, connection: usize, task: usize) {
        if self.tasks.len() <= connection {
            self.tasks.resize_with(connection + 1, VecDeque::new);
        }
        let Some(tasks) = self.tasks.get_mut(connection) else { return };
        if tasks.is_empty() {
            self.order.push_back(connection);
        }
        tasks.push_back(task);
    }

    pub(super) fn pop(&mut self) -> Option<usize> {
        let connection = self.order.pop_front()?;
        let tasks = self.tasks.get_mut(connection)?;
        let task = tasks.pop_front();
        if !tasks.is_empty() {
            self.order.push_back(connection);
        }
        task
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns() {
        let mut queue = RunQueue::default();
        for task in 0..4 {
            queue.push(7, task);
        }
        queue.push(2, 10);
        queue.push(2, 11);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [0, 10, 1, 11, 2, 3]);
        assert!(queue.is_empty());
    }
}
