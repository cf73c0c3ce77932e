"""What stands around training: conversion, sampling, the built-in task, new models, the doctor."""
