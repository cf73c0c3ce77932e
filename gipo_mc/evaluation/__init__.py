"""Who wins: responses of two policies side by side, judged by models and by people."""
